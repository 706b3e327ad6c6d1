"""What a model card says of causal models, and what of masked ones."""

from __future__ import annotations

from dataclasses import dataclass

from xlm_train.interop.facts import Facts
from xlm_train.interop.transformers.folder import pipeline_language
from xlm_train.model.transformer import ModelShape
from xlm_train.text.vocabulary import MASK, SPECIALS

EXAMPLES = {"de": "Es war einmal", "en": "Wikipedia was used to"}
GAPS = {"de": "Es war {mask} ein König .", "en": "It was {mask} of them ."}
OTHER_LANGUAGE = "12 : 3 = 4"
CAUSAL_CLASS = """class CausalXLM(XLMWithLMHeadModel):
    def prepare_inputs_for_generation(self, input_ids, **kwargs):
        return {"input_ids": input_ids, "langs": torch.full_like(input_ids, self.config.lang_id)}"""


@dataclass(frozen=True)
class Kind:
    """The parts of a card that depend on what a model has learned.

    Args:
        intro: What it is, a clause.
        name: Of the kind.
        like: The published model of its kind.
        example: Python that uses it, and what there is to know of that.
        ends: Python: which of a line's ids a text has.
        trap: What not to do.
        uses: What it is for.
        objective: What it was trained to predict.
        tag: Of the hub, like the next three.
        task: What evaluations are of.
        task_name: For people.
        pipeline: The one of transformers that works on the folder; None where none does.
        scores: How the figures of an evaluation are to be read.
    """

    intro: str
    name: str
    like: str
    example: str
    ends: str
    trap: str
    uses: str
    objective: str
    tag: str
    task: str
    task_name: str
    pipeline: str | None
    scores: str


def kind_of(facts: Facts) -> Kind:
    """Tell what is to be said of a model."""
    return _masked(facts) if facts.content.get("evaluation") == "masked" else _causal(facts)


def example_of(language: str) -> str:
    """Text to begin with in a language."""
    return EXAMPLES.get(language, OTHER_LANGUAGE)


def _causal(facts: Facts) -> Kind:
    language = "en" if "en" in facts.languages else next(iter(facts.languages))
    return Kind(
        intro="A causal (left-to-right) cross-lingual language model",
        name="causal language model",
        like="xlm-clm-ende-1024",
        example=f"""```python
import torch
from transformers import XLMTokenizer, XLMWithLMHeadModel

tokenizer = XLMTokenizer.from_pretrained("FOLDER")
model = XLMWithLMHeadModel.from_pretrained("FOLDER")

input_ids = torch.tensor([tokenizer.encode("{example_of(language)}")])
langs = torch.full_like(input_ids, tokenizer.lang2id["{language}"])  # without langs the scores are other ones
scores = model(input_ids, langs=langs).logits
```

**Exact token ids.** transformers' `encode()` applies English rules to every language and begins a text with `<s>`,
where training texts begin with `</s>`. Lines that it encodes differently from the training's preparation:""",
        ends="[:-1]",
        trap=f"""**Continuing text.** `generate()` as it comes, and so `pipeline("text-generation")`, puts a mask token after the text and
predicts what follows *that*. With this class it continues the text, sampling and beams included:

```python
{CAUSAL_CLASS}

model = CausalXLM.from_pretrained("FOLDER")
model.config.lang_id = tokenizer.lang2id["{language}"]
prompt = tokenizer.encode("{example_of(language)}", add_special_tokens=False)
ids = torch.tensor([[tokenizer.sep_token_id, *prompt]])  # </s> first
print(tokenizer.decode(model.generate(ids, max_new_tokens=20)[0], skip_special_tokens=True))
```

One text at a time: padding would shift its positions. A loss from `labels=input_ids` is not shifted: shift the labels yourself.""",
        uses="Scoring and continuing text",
        objective="each token from those before it in its window (cross-entropy)",
        tag="causal-lm",
        task="text-generation",
        task_name="Causal language modelling",
        pipeline=None,
        scores="a split is read as one stream in windows, as the original evaluates."
        " Perplexities per token compare only under the same vocabulary; per word and per character they compare"
        " between vocabularies.",
    )


def _masked(facts: Facts) -> Kind:
    language, mask = pipeline_language(facts.languages, facts.pipeline_language), SPECIALS[MASK]
    gap = GAPS.get(language, "12 : 3 = {mask}").format(mask=mask)
    shape = ModelShape(**facts.content["shape"])
    named = f"""A pipeline cannot name a language: here it reads {language}, whose embedding was added to the positions and taken off
the languages (`xlm-export lang=...` chooses another). With `langs` every language is scored as in the training:"""
    if not shape.uses_languages:
        named = "The model itself:"
    elif shape.sinusoidal_positions:
        named = (
            "A pipeline cannot name a language, and scores without one. With `langs` scores are those of the training:"
        )
    return Kind(
        intro="A masked (bidirectional) cross-lingual language model",
        name="masked language model",
        like="xlm-mlm-ende-1024",
        example=f"""```python
from transformers import pipeline

pipeline("fill-mask", model="FOLDER")("{gap}")  # the best five words for {mask}
```

{named}

```python
import torch
from transformers import XLMTokenizer, XLMWithLMHeadModel

tokenizer = XLMTokenizer.from_pretrained("FOLDER")
model = XLMWithLMHeadModel.from_pretrained("FOLDER")

input_ids = torch.tensor([tokenizer.encode("{gap}")])
langs = torch.full_like(input_ids, tokenizer.lang2id["{language}"])
scores = model(input_ids, langs=langs).logits
```

**Exact token ids.** transformers' `encode()` applies English rules to every language. Lines that it encodes differently
from the training's preparation:""",
        ends="",
        trap=f"""**It continues no text.** Every position sees all others: the word to predict must be hidden by `{mask}`, and `generate()`
makes no sense.""",
        uses="Filling gaps in text, and reading it in both directions",
        objective="hidden words from all others of a window, or of a pair of sentences where pairs were read (cross-entropy)",
        tag="masked-lm",
        task="fill-mask",
        task_name="Masked language modelling",
        pipeline="fill-mask",
        scores=f"a split is read as one stream in windows, 15 % of whose words are hidden by fixed masks ({mask}) and predicted"
        " from all others, as the original evaluates. These perplexities are of the hidden words alone: they compare with"
        " other masked models of the same vocabulary, not with causal ones.",
    )
