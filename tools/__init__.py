"""Tools for developers: sheets of outputs, heat maps of the routers."""
