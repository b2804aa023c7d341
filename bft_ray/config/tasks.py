"""What can be measured on a model: one typed task a kind, told apart by `kind`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from bft_ray.config.base import Section, rule

_NAME = r"^[a-z0-9_]+$"
_FILE = "JSONL, JSON, CSV or Parquet file, or starter:DOMAIN/SPLIT"


class TaskBase(Section):
    """What all tasks have."""

    name: str = Field(pattern=_NAME, description="prefix of its metrics")
    limit: int | None = Field(None, ge=1, description="use at most this many items")


class RowsTask(TaskBase):
    """A task over rows of the forms that training reads."""

    path: str = Field(description=f"{_FILE}, saved datasets folder or hub id")
    split: str | None = Field(None, description="split of a hub dataset or saved DatasetDict")
    config_name: str | None = Field(None, description="configuration name of a hub dataset")
    revision: str | None = Field(None, description="hub revision of the dataset")
    form: str = Field("auto", description="form of the rows, such as medqa or sharegpt; auto: told by the columns")
    columns: dict[str, str] = Field(
        default_factory=dict, description="canonical field -> column of the file, or a template; as in data.train"
    )


class TextTask(RowsTask):
    """Likelihood of plain text or of completions: NLL, perplexity, bits per byte, token accuracy."""

    kind: Literal["text"] = Field("text", description="what this task is")
    path: str = Field(description=f"{_FILE}; rows of text, or of prompt and completion")


class ChoiceTask(RowsTask):
    """A multiple-choice set: a question, its options as a list or by letter, the answer as index, letter or text."""

    kind: Literal["choice"] = Field("choice", description="what this task is")
    name: str = Field("choices", pattern=_NAME, description="prefix of its metrics")


class PairsTask(TaskBase):
    """A yes/no question about pairs: rows of gene_a, gene_b, label (0 or 1)."""

    kind: Literal["pairs"] = Field("pairs", description="what this task is")
    name: str = Field("pairs", pattern=_NAME, description="prefix of its metrics")
    path: str = Field(description=_FILE)
    question: str = Field(
        "Do the genes {gene_a} and {gene_b} interact?", description="template with {gene_a} and {gene_b}"
    )
    yes: str = Field("yes", min_length=1, description="answer of label 1")
    no: str = Field("no", min_length=1, description="answer of label 0")

    @model_validator(mode="after")
    def _both_genes(self) -> PairsTask:
        if "{gene_a}" not in self.question or "{gene_b}" not in self.question:
            raise rule("question", self.question, "a template with {gene_a} and {gene_b}")
        return self


class Decoding(Section):
    """How text is generated."""

    max_new_tokens: int = Field(256, ge=1, description="longest answer, in tokens")
    temperature: float = Field(0.0, ge=0, description="of sampling; 0 takes the likeliest token (greedy)")
    top_p: float = Field(1.0, gt=0, le=1, description="sample from the likeliest tokens of this total probability")
    num_samples: int = Field(1, ge=1, description="answers an item; metrics are means over them")
    engine: Literal["transformers", "vllm"] = Field("transformers", description="what generates; vllm when installed")

    @model_validator(mode="after")
    def _samples_differ(self) -> Decoding:
        if self.num_samples > 1 and self.temperature == 0:
            raise rule("num_samples", self.num_samples, "1 when temperature is 0", "Greedy answers are all the same.")
        return self


class GenerationTask(RowsTask):
    """Generated answers against gold ones: rows of prompt and completion, or of messages that end with an answer."""

    kind: Literal["generation"] = Field("generation", description="what this task is")
    answer: Literal["final", "yes_no_maybe", "text"] = Field(
        "text",
        description="what exact match compares: the number after ####, the first yes/no/maybe, or the whole text",
    )
    decoding: Decoding = Field(Decoding(), description="how its answers are generated")


class NamesTask(TaskBase):
    """Naming the process of a gene set: rows of prompt and gold_name."""

    kind: Literal["names"] = Field("names", description="what this task is")
    name: str = Field("names", pattern=_NAME, description="prefix of its metrics")
    path: str = Field(description=_FILE)
    num_choices: int = Field(10, ge=2, description="the gold name and drawn ones, for the name choice probability")
    seed: int = Field(0, ge=0, description="of the drawn names")
    prefix: str = Field("Process: ", description="text that stands before the name in a completion")
    candidates: str | None = Field(None, description="file of candidate names (column name); null: all gold names")
    encoder: str | None = Field(
        None, description="text encoder (folder, hub id, or `minilm`) of the name similarity; null: ROUGE alone"
    )
    generate: bool = Field(True, description="also generate a name and score it")
    decoding: Decoding = Field(Decoding(max_new_tokens=32), description="how its answers are generated")


class EmbeddingPairsTask(TaskBase):
    """Gene interaction from embeddings: pairs of described genes, split by genes."""

    kind: Literal["embedding_pairs"] = Field("embedding_pairs", description="what this task is")
    name: str = Field("described_pairs", pattern=_NAME, description="prefix of its metrics")
    descriptions: str = Field(description=f"{_FILE}; rows of gene and description")
    train: str = Field(description=f"{_FILE}; pairs (gene_a, gene_b, label) to fit the classifiers on")
    path: str = Field(description=f"{_FILE}; pairs to test them on; no gene of theirs is trained on")
    source: Literal["hidden", "generated"] = Field(
        "hidden", description="hidden: the model's hidden states; generated: `encoder` over the model's descriptions"
    )
    encoder: str | None = Field(None, description="text encoder (folder, hub id, or `minilm`) for source generated")
    template: str = Field("Describe the gene {gene}.", description="prompt with {gene}, for source generated")
    seed: int = Field(0, ge=0, description="of the classifiers")
    decoding: Decoding = Field(Decoding(max_new_tokens=128), description="how its answers are generated")

    @model_validator(mode="after")
    def _encoder_given(self) -> EmbeddingPairsTask:
        if self.source == "generated" and self.encoder is None:
            raise rule("encoder", None, "a text encoder when source is generated", "Give a folder or hub id.")
        return self


class CellsTask(TaskBase):
    """Single cells as ranked gene lists: rows of cell, label, a list of genes, optional batch and group (a donor)."""

    kind: Literal["cells"] = Field("cells", description="what this task is")
    name: str = Field("cells", pattern=_NAME, description="prefix of its metrics")
    path: str = Field(description=_FILE)
    genes: str = Field("top_expressed", description="column of the ranked gene list")
    num_genes: int = Field(50, ge=1, description="genes taken from the top of the list")
    template: str = Field("A cell that expresses {genes}.", description="text of a cell, with {genes}")
    num_neighbours: int = Field(10, ge=1, description="k of the k-NN classifier")
    batch: str | None = Field(None, description="column of the batch, for the integration score")
    seed: int = Field(0, ge=0, description="of folds and clusters")


class JudgeConfig(Section):
    """An OpenAI-compatible endpoint that judges answers."""

    url: str = Field(description="base URL of the API, e.g. http://127.0.0.1:8000/v1")
    model: str = Field(description="model name that the endpoint knows")
    api_key_env: str | None = Field(
        None, description="environment variable that holds the API key; never the key itself"
    )
    concurrency: int = Field(8, ge=1, description="requests at once")
    retries: int = Field(4, ge=0, description="further tries of a request that failed")
    timeout_s: float = Field(60.0, gt=0, description="longest wait for one answer")


class RubricTask(TaskBase):
    """Answers judged by a rubric (HealthBench form): rows of prompt and rubric [{criterion, points}]."""

    kind: Literal["rubric"] = Field("rubric", description="what this task is")
    path: str = Field(description=_FILE)
    judges: list[JudgeConfig] = Field(
        min_length=1, max_length=2, description="one judge, or two whose agreement is told"
    )
    consent: bool = Field(
        False, description="answers may be sent to an endpoint that is not on this machine; they may concern patients"
    )
    max_requests: int = Field(1000, ge=1, description="budget: the evaluation stops before it asks more often")
    cache: str | None = Field(None, description="folder of earlier verdicts; null: none kept")
    decoding: Decoding = Field(Decoding(max_new_tokens=512), description="how its answers are generated")


class HarnessTask(TaskBase):
    """Tasks of lm-evaluation-harness by name, when that library is installed."""

    kind: Literal["harness"] = Field("harness", description="what this task is")
    name: str = Field("harness", pattern=_NAME, description="prefix of its metrics")
    tasks: list[str] = Field(min_length=1, description="task names, e.g. mmlu, cmmlu")
    include_path: str | None = Field(None, description="folder of further task files")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; null: the task's own number")


Task = Annotated[
    TextTask
    | ChoiceTask
    | PairsTask
    | GenerationTask
    | NamesTask
    | EmbeddingPairsTask
    | CellsTask
    | RubricTask
    | HarnessTask,
    Field(discriminator="kind"),
]
