"""Functions of the tasks in this folder, which lmms-eval lacks."""

import re
import string

ARTICLES = re.compile(r"\b(a|an|the)\b")
NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
SPLITS = ("val_unseen_question", "val_unseen_entity")


def doc_to_visual(doc):
    """The picture of a sample."""
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    """The question of a sample, with what the task puts around it."""
    around = lmms_eval_specific_kwargs or {}
    return f"{around.get('pre_prompt', '')}{doc['question']}{around.get('post_prompt', '')}"


def plain(text):
    """Lower case, without articles, punctuation and double spaces."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(ARTICLES.sub(" ", kept).split())


def is_right(answer, wanted):
    """Whether an answer is one of `wanted`: words, or two numbers as text, "low..high", that a number lies between."""
    for each in wanted:
        low, _, high = each.partition("..")
        numbers = NUMBER.findall(answer.replace(",", ""))
        if high and numbers and float(low) <= float(numbers[0]) <= float(high):
            return True
        if not high and plain(answer) == plain(each):
            return True
    return False


def infoseek_process_results(doc, results):
    """Whether a sample was answered, for the split it belongs to and for the harmonic mean of both."""
    verdict = {"split": doc["data_split"], "right": float(is_right(results[0], doc["answer_eval"]))}
    return {"h_mean": verdict, "unseen_question": verdict, "unseen_entity": verdict}


def _share(verdicts, split):
    right = [verdict["right"] for verdict in verdicts if verdict["split"] == split]
    return sum(right) / len(right) if right else 0.0


def infoseek_unseen_question(verdicts):
    """Share of right answers to unseen questions."""
    return _share(verdicts, "val_unseen_question")


def infoseek_unseen_entity(verdicts):
    """Share of right answers about unseen entities."""
    return _share(verdicts, "val_unseen_entity")


def infoseek_h_mean(verdicts):
    """Harmonic mean of both shares."""
    first, second = (_share(verdicts, split) for split in SPLITS)
    return 2 * first * second / (first + second) if first and second else 0.0
