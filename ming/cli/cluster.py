"""Serve a model by several processes or machines, through Ray Serve.

Without --address, Ray runs in processes of this machine and ends with this command. Ray replaces replicas that die;
requests that they had not answered go to other ones.
"""

from ming.cli.arguments import count, real_number
from ming.cli.checks import check_address
from ming.cli.serve import add_server_options, check_place, listen, server_options
from ming.cli.usage import Parser, user_input
from ming.serving.cluster import ClusterOptions, running_cluster
from ming.serving.options import set_up_logging

EXAMPLES = """\
examples:
  ming cluster --model . --replicas 2
  ming cluster --model . --device cuda --replicas 1 --max-replicas 8 --address auto
"""


def build_parser() -> Parser:
    """The parser of `ming cluster`."""
    parser = Parser("cluster", __doc__, EXAMPLES)
    add_server_options(parser)
    add = parser.add_argument_group("cluster").add_argument
    add("--replicas", type=count, default=2, metavar="N", help="servers, at least (default: %(default)s)")
    text = "servers, at most; more than --replicas scales with the requests"
    add("--max-replicas", type=count, metavar="N", help=text)
    add("--address", help="of a Ray cluster, 'auto' for the one of this machine; default: start Ray here")
    text = "cores of a replica; default: this machine's cores shared out, in a cluster 1"
    add("--cpus", type=real_number(0), metavar="N", help=text)
    add("--gpus", type=real_number(0), metavar="N", help="GPUs of a replica; default: 1 if it computes on GPUs")
    return parser


def main(arguments: list[str]) -> None:
    """Run `ming cluster` until it is interrupted."""
    args = build_parser().parse_args(arguments)
    set_up_logging(args.log_level)
    options = server_options(args)
    with user_input():
        cluster = ClusterOptions(args.replicas, args.max_replicas, args.address, args.cpus, args.gpus)
    if args.address is None:
        check_place(options)
    else:  # model and device are those of other machines
        check_address(options.host, options.port)
    with running_cluster(cluster, options) as app:
        listen(app, options, lifespan="off")
