"""Hand a run to Hugging Face transformers, and to what reads its models:

    python -m tools.export out/bcp-p1-1 DIR
    python -m tools.export out/bcp-p1-1 DIR --checkpoints      # a run of train.py --checkpoints=babylm

DIR then loads with AutoModelForCausalLM.from_pretrained(DIR) and AutoTokenizer.from_pretrained(DIR), without remote
code or a network: the model as a Llama with biases; the tokenizer with the run's ids and the end-of-text token before
every text, where evaluate.py has it too. Unlike the run's own tokenizer, and as is usual there, it reads
"<|endoftext|>" and "<|pad|>" in a text as those tokens. README.md in DIR is the model card. With --checkpoints there is
such a folder for each number of words, DIR/chck_1M and so on, and DIR/main for the weights at the end.
"""

import argparse
import importlib.util
import json
import math
import shlex
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tools.export",
        usage=argparse.SUPPRESS,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
    )
    parser.add_argument("run", type=Path, help="run folder, as train.py wrote it")
    parser.add_argument("dir", type=Path, nargs="?", metavar="DIR", help="folder to write: a new or an empty one "
                        "(default: the folder export in the run's)")  # fmt: skip
    parser.add_argument("--checkpoints", action="store_true", help="a folder each in DIR for the weights that the run "
                        "kept at the challenge's numbers of words, and main (default: off)")  # fmt: skip
    parser.add_argument("--weights", choices=("last", "average"), default="last", help="average: of average.pt, "
                        "which python -m tools.average RUN --last=4 writes (default: last)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR (default: off)")
    return parser


ARGS = get_parser().parse_args() if __name__ == "__main__" else None  # wrong flags end here, before the import of torch

import torch  # noqa: E402

import checkpoint  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import flags  # noqa: E402
import journal  # noqa: E402
from machine import pick_device  # noqa: E402
from model import Config, Transformer  # noqa: E402

# Flags that say where a run was made, not what was computed; the model card leaves them out.
LOCAL = flags.FREE - {"max_updates"}
# What config.json says is the longest input, tokens. Positions are relative, and evaluate.py cuts nothing: a tool that
# looks there must not cut at the block size.
LONGEST = 8192
# Padding, a token of the model that no text contains: that of the byte 0xFF, which is not in UTF-8. Its id stays.
PAD, NO_TEXT = "<|pad|>", b"\xff"


# --- The model --------------------------------------------------------------------------------------------------------


def model_config(config: Config, block_size: int, pad: int) -> dict:
    """config.json: the sizes in Llama's names. block_size: the longest sequence that the model was trained on, tokens.

    The model is declared as a Llama with biases on q, k, v and, of zeros, on o. For "qwen2" itself, newer transformers
    (5.23) silently put Qwen's normalizer and split pattern in the place of tokenizer.json's.
    """
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": True, "mlp_bias": False,
        "vocab_size": config.vocab_size, "hidden_size": config.n_embd, "intermediate_size": config.n_mlp,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head, "head_dim": config.n_embd // config.n_head, "hidden_act": "silu",
        "max_position_embeddings": max(block_size, LONGEST),
        "rope_theta": config.rope_theta,  # read by transformers 4, the next line by 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": True, "initializer_range": 0.02,
        "torch_dtype": "float32", **token_ids(config, pad),
    }  # fmt: skip


def token_ids(config: Config, pad: int) -> dict:
    """End-of-text, the last id, begins a text and ends it."""
    return dict.fromkeys(("bos_token_id", "eos_token_id"), config.vocab_size - 1) | {"pad_token_id": pad}


def weights_of(model: Transformer) -> dict[str, torch.Tensor]:
    """The weights under Llama's names, which are model.py's; and the zeros that model.py does without."""
    zeros = {f"model.layers.{i}.self_attn.o_proj.bias": torch.zeros(model.config.n_embd)
             for i in range(model.config.n_layer)}  # fmt: skip
    return model.state_dict() | zeros


# --- The tokenizer ----------------------------------------------------------------------------------------------------


def byte_alphabet() -> list[str]:
    """The visible character that stands for each byte 0 .. 255 in a byte-level BPE (GPT-2's encoder.py)."""
    visible = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    hidden = iter(range(256, 512))
    return [chr(byte if byte in visible else next(hidden)) for byte in range(256)]


def halves(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens whose merge makes `token`: what BPE leaves of its bytes before the merge of its own rank.

    One pair a token is enough to encode as tiktoken does, which joins *any* two neighbours that spell a token: when it
    comes to a rank, all lower ones are merged, so no other two neighbours can spell that token. Raises DataError for a
    token that BPE cannot make.
    """
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        found = [ranks.get(a + b, math.inf) for a, b in zip(parts, parts[1:], strict=False)]
        i = found.index(min(found))  # the leftmost of the lowest rank
        if found[i] >= ranks[token]:
            raise data.DataError(f"the tokenizer's token {token!r} is not made by merges; byte-level BPE only")
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def byte_level_bpe(encoding: "tiktoken.Encoding") -> dict:  # noqa: F821
    """Those parts of a tokenizer.json that tell how a text becomes ids, for the ids of `encoding`."""
    alphabet = byte_alphabet()
    alphabet[NO_TEXT[0]] = PAD
    tokens = [encoding.decode_single_token_bytes(i) for i in range(encoding.eot_token)]
    ranks = {token: rank for rank, token in enumerate(tokens)}

    def spell(token: bytes) -> str:
        return "".join(alphabet[byte] for byte in token)

    split = {"type": "Split", "pattern": {"Regex": encoding._pat_str}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "decoder": byte_level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": True,  # a piece that is a token as a whole is taken as that, as tiktoken does
            "vocab": {spell(token): rank for token, rank in ranks.items()},
            "merges": [" ".join(map(spell, halves(token, ranks))) for token in tokens if len(token) > 1],
        },
    }  # fmt: skip


def unigram(encoding: data.Unigram) -> dict:
    """The same parts, which are the model's own."""
    decoders = [{"type": "ByteFallback"}, {"type": "Fuse"}]
    parts = json.loads(encoding.model.to_str()) | {"decoder": {"type": "Sequence", "decoders": decoders}}
    parts["model"]["vocab"][pad_id(encoding)][0] = PAD
    return parts


def pad_id(encoding: "tiktoken.Encoding | data.Unigram") -> int:  # noqa: F821
    return next(i for i in range(encoding.eot_token) if encoding.decode_single_token_bytes(i) == NO_TEXT)


def fast_tokenizer(encoding: "tiktoken.Encoding | data.Unigram") -> dict:  # noqa: F821
    """tokenizer.json for Hugging Face's tokenizers: the ids of `encoding`, after an end-of-text token.

    Of a pair of texts each one comes after an end-of-text token, like two lines of the training text.
    """
    parts = unigram(encoding) if isinstance(encoding, data.Unigram) else byte_level_bpe(encoding)
    eot, plain = encoding.eot_token, dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = {"SpecialToken": {"id": data.EOT, "type_id": 0}}
    a, b = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": parts["normalizer"],
        "added_tokens": [{"id": i, "content": content, "special": True, **plain}
                         for i, content in ((pad_id(encoding), PAD), (eot, data.EOT))],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": {  # leaves the offsets as they are: the space before a word belongs to its token
            "type": "TemplateProcessing", "single": [first, a], "pair": [first, a, first, b],
            "special_tokens": {data.EOT: {"id": data.EOT, "ids": [eot], "tokens": [data.EOT]}},
        },
        "decoder": parts["decoder"], "model": parts["model"],
    }  # fmt: skip


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **dict.fromkeys(("bos_token", "eos_token"), data.EOT), "pad_token": PAD,
    "padding_side": "left",  # the last token, from which a causal model goes on, is at the same place in all rows
    "clean_up_tokenization_spaces": False,  # else decoding takes the space out of " ." and " n't"
    "model_input_names": ["input_ids", "attention_mask"],
}  # fmt: skip


# --- The model card ---------------------------------------------------------------------------------------------------


def scores(run: Path, update: int | None, digest: str) -> list[tuple[str, str, str]]:
    """Rows of what was scored, score, remark: of these weights, and no others, by their update and their digest.

    update: None for the average. Raises ValueError, naming the file, for a record that is damaged or a result that is
    not one of evaluate.py's.
    """
    records = journal.read(run) if (run / journal.FILE).exists() else []
    found = [record for record in journal.evaluations(records) if record["update"] == update]
    if update is None:
        found = [json.loads((run / "average.json").read_text())]
    rows = []
    for record in found[-1:]:
        if record["val_loss"] is not None:
            rows.append(("validation loss, nats per token", f"{record['val_loss']:.3f}", ""))
        if record["pairs"]:
            rows.append(("minimal pairs, %", f"{record['toy']:.1f}", f"mean of {len(record['pairs'])} paradigms"))
    for file in sorted(run.glob("eval-*.json")):
        try:
            result = json.loads(file.read_text())
            of_these = (result.get("update"), result.get("digest")) == (update, digest)
            for row in result["scores"] if of_these else []:
                interval = "" if row["low"] is None else f", 95 % interval {row['low']:.1f} to {row['high']:.1f}"
                rows.append((row["name"], f"{row['score']:.1f}", f"{row['items']:,} items{interval}"))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(
                f"{file}: damaged, not a result of evaluate.py; score the run again or delete it"
            ) from None
    return rows


def command(saved: dict) -> str:
    """The training command with all flags spelt out, whatever was their default when the run was made."""
    given = [name for name, value in saved.items() if name not in LOCAL and value is not None and value is not False]
    words = ["python train.py", *(shlex.quote(flags.spelt(name, saved[name])) for name in given)]
    lines = textwrap.wrap(" ".join(words), 100, break_long_words=False, break_on_hyphens=False)
    return " \\\n    ".join(lines)


def of_weights(run: Path, config: dict, update: int | None) -> str:
    """Which weights these are, in words."""
    if update is None:
        updates = json.loads((run / "average.json").read_text())["updates"]
        return f"the mean of those of updates {', '.join(map(str, updates))}"
    args, corpus = config["flags"], config.get("corpus")
    tokens = update * args["batch_size"] * args["block_size"]
    read = f"{tokens * corpus['n_words'] / corpus['n_tokens']:,.0f} words" if corpus else f"{tokens:,} tokens"
    return f"those of update {update}, after reading {read} (repeats included)"


def model_card(run: Path, config: dict, model: Transformer, update: int | None, name: str = "") -> str:
    """README.md. name: of this checkpoint, if there are several."""
    n_zeros = config["model"]["n_layer"] * config["model"]["n_embd"]
    sizes = {"parameters": config["parameters"], **config["model"], "block_size": config["flags"]["block_size"]}
    corpus = config.get("corpus", {})
    text = f"{corpus.get('corpus', config['flags']['data'])}" + (f", {corpus['n_words']:,} words" if corpus else "")
    rows = scores(run, update, evaluate.digest_of(model))
    table = ["| scored | score | |", "|---|---|---|"] + [f"| {' | '.join(row)} |" for row in rows]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {run.resolve().name}{name and f", {name}"}

A small causal language model with the architecture of Qwen2, trained on {text}. It comes from a research
implementation of batch-wise convergent pre-training (BCP, Yoshida et al. 2025,
https://aclanthology.org/2025.babylm-main.36) and of the regimes that BCP is compared to; this one was trained with
`--mode={config["flags"]["mode"]}`. It follows no instructions. The weights, in float32, are
{of_weights(run, config, update)}.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")

The tokenizer puts the end-of-text token `{data.EOT}` before every text, as in training. It pads on the left, with the
token `{PAD}` that no text contains. config.json says `llama`, with biases: those on q, k and v are the model's own,
those on o are {n_zeros:,} zeros. (For `qwen2`, newer transformers exchange the tokenizer's split pattern.) Inputs may
have {max(sizes["block_size"], LONGEST):,} tokens, so that no tool cuts them; it was trained on {sizes["block_size"]:,}.

## BabyLM's evaluation

- Fine-tuning (GLUE): pass `--take_final --padding_side left`. Without the first, the classifier reads the first token.
  That is end-of-text in every text, and a causal model sees nothing else there: all texts look the same to it. Without
  the second, the last token may be padding.
- A local folder ignores `revision=`, and so it ignores `--revision_name` of the evaluation's scripts: whatever name
  they are given, they score these weights. Give them the folder of each checkpoint instead. On the Hub a checkpoint is
  a branch, `chck_1M` and so on.

## Scores

{chr(10).join(table) if rows else "None was recorded."}

## Sizes

| | |
|---|---|
{chr(10).join(f"| {name} | {size:,} |" for name, size in sizes.items())}

## Training

    {command(config["flags"])}
"""


# --- Command line -----------------------------------------------------------------------------------------------------


def check_target(target: Path, overwrite: bool) -> None:
    """Raises ValueError if an export to `target` would destroy something."""
    if target.exists() and not target.is_dir():
        raise ValueError(f"{target}: is a file; give a folder")
    if any((target / name).exists() for name in (checkpoint.NAME, journal.FILE)):
        raise ValueError(f"{target}: holds a run, which an export would damage; give another folder")
    if target.is_dir() and any(target.iterdir()) and not overwrite:
        raise ValueError(f"{target}: is not empty; give a new folder, or --overwrite to replace an earlier export")


def checkpoints(run: Path, config: dict) -> dict[str, int]:
    """The updates of the weights that a run kept by words, by the challenge's names.

    Raises ValueError if it kept none. The end of a run may stand for the last one (flags.updates_to_keep).
    """
    args, corpus = argparse.Namespace(**config["flags"]), config["corpus"]
    kept = {update for update, _ in checkpoint.kept_weights(run)}
    if args.keep_weights not in ("babylm", "words") or not kept:
        raise ValueError(f"{run}: kept no weights by words; train with --checkpoints=babylm")
    at = flags.milestones(args, corpus["n_words"] / corpus["n_tokens"])
    found = {f"chck_{million}M": update for million, update in at.items() if update in kept}
    if at_end := kept - {*at.values()}:
        found[f"chck_{next(million for million in at if at[million] > max(at_end))}M"] = max(at_end)
    return found


def exports(run: Path, weights: str, by_words: bool) -> Iterator[tuple[str, dict[str, bytes]]]:
    """The folders of an export, and the files in each, by name; "" is the folder itself.

    Raises ValueError, one line, for a run that is missing or damaged.
    """
    from safetensors.torch import save

    model, encoding, config = evaluate.load_run(run, pick_device("cpu"), weights)
    if encoding.n_vocab != model.config.vocab_size:
        raise ValueError(f"{run}: its tokenizer has {encoding.n_vocab} tokens, its model {model.config.vocab_size}")

    def as_json(content: dict) -> bytes:
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    pad, tokenizer = pad_id(encoding), as_json(fast_tokenizer(encoding))
    of_words, files = checkpoints(run, config) if by_words else {}, dict(checkpoint.kept_weights(run))
    for name, update in ({"main" if by_words else "": config["update"]} | of_words).items():
        if name in of_words:
            checkpoint.fill(model, checkpoint.load(files[update])["model"], files[update])
        yield (
            name,
            {
                "model.safetensors": save(weights_of(model), metadata={"format": "pt"}),
                "tokenizer.json": tokenizer,
                "tokenizer_config.json": as_json(TOKENIZER_CONFIG),
                "generation_config.json": as_json(token_ids(model.config, pad)),
                "README.md": model_card(run, config, model, update, name).encode(),
                # Last, because nothing loads a folder without it: an export that was cut off is seen to be none.
                "config.json": as_json(model_config(model.config, config["flags"]["block_size"], pad)),
            },
        )


def write(folder: Path, files: dict[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").unlink(missing_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    print(f"written to {folder}: {sum(map(len, files.values())):,} bytes")


def main(args: argparse.Namespace) -> None:
    parser, target = get_parser(), args.dir or args.run / "export"
    if importlib.util.find_spec("safetensors") is None:
        parser.error("needs the package safetensors, which make test installs; or: pip install safetensors")
    try:
        check_target(target, args.overwrite)
        for name, files in exports(args.run, args.weights, args.checkpoints):
            write(target / name, files)
    except ValueError as error:
        parser.error(str(error))
    except (KeyError, TypeError, AttributeError) as error:  # JSON, but not what train.py writes
        parser.error(f"{args.run}: damaged, {checkpoint.CONFIG} or a checkpoint lacks something ({error!r})")


if __name__ == "__main__":
    try:
        main(ARGS)
    except OSError as error:
        sys.exit(f"tools.export: {error}")
