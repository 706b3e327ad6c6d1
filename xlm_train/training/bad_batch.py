"""The text of a bad step, for a person to look at."""

from __future__ import annotations

from xlm_train.data.corpus import Corpus
from xlm_train.data.order import Order
from xlm_train.text.bpe import decode_ids
from xlm_train.text.vocabulary import EOS, Vocabulary
from xlm_train.training.anomaly import BadStep


def decoded(bad: BadStep, corpus: Corpus, order: Order, bptt: int) -> str:
    """Which windows a bad step read, and what stands in them: of the slots to blame, or of all where none is known.

    Windows are numbered as in `corpus.py`; sentences stand one a line, as they do in the corpus.
    """
    vocabulary = Vocabulary.from_file(corpus.vocab_path)
    lines = [f"step {bad.step}: {bad.reason}", ""]
    for slot in order.step(bad.step):
        if bad.slots and slot.number not in bad.slots:
            continue
        lines.append(f"## slot {slot.number}: language {slot.language}")
        stream = corpus.stream("train", slot.language)
        for window, number, tokens in zip(slot.windows, slot.passes, stream.windows(slot.windows, bptt), strict=True):
            lines += ["", f"### window {window} of pass {number}"]
            sentence: list[int] = []
            for token in [*tokens.tolist(), EOS]:
                if token != EOS:
                    sentence.append(token)
                elif sentence:
                    lines.append(decode_ids(sentence, vocabulary))
                    sentence = []
        lines.append("")
    return "\n".join(lines) + "\n"
