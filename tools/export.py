"""Hand a run to Hugging Face transformers: python -m tools.export out/bcp-p1-1 DIR

DIR then loads with AutoModelForCausalLM.from_pretrained(DIR) and AutoTokenizer.from_pretrained(DIR), without remote
code or a network: the model under the names that model.py shares with Qwen2; the tokenizer with the run's ids and the
end-of-text token before every text, where evaluate.py has it too. Unlike the run's own tokenizer, and as is usual
there, it reads "<|endoftext|>" in a text as that token. README.md in DIR is the model card.
"""

import argparse
import importlib.util
import json
import math
import shlex
import sys
import textwrap
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
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder to write: a new or an empty one")
    parser.add_argument("--weights", choices=("last", "average"), default="last", help="average: of average.pt, "
                        "which python -m tools.average RUN --last=4 writes (default: last)")  # fmt: skip
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in DIR (default: off)")
    return parser


ARGS = get_parser().parse_args() if __name__ == "__main__" else None  # wrong flags end here, before the import of torch

import checkpoint  # noqa: E402
import data  # noqa: E402
import evaluate  # noqa: E402
import flags  # noqa: E402
import journal  # noqa: E402
from machine import pick_device  # noqa: E402
from model import Config  # noqa: E402

# Flags that say where a run was made, not what was computed; the model card leaves them out.
LOCAL = flags.FREE - {"max_updates"}


# --- The model --------------------------------------------------------------------------------------------------------


def model_config(config: Config, block_size: int) -> dict:
    """config.json: the sizes in Qwen2's names. block_size: the longest sequence that the model was trained on, tokens.

    The model is declared as a Qwen2-MoE without experts, whose layers and names are Qwen2's own. For "qwen2" itself,
    newer transformers (5.23) silently put Qwen's normalizer and split pattern in the place of tokenizer.json's.
    """
    return {
        "architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": 0,
        "mlp_only_layers": list(range(config.n_layer)),
        "vocab_size": config.vocab_size, "hidden_size": config.n_embd, "intermediate_size": config.n_mlp,
        "num_hidden_layers": config.n_layer, "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_kv_head, "qkv_bias": True, "hidden_act": "silu",
        "max_position_embeddings": block_size, "use_sliding_window": False,
        "rope_theta": config.rope_theta,  # read by transformers 4, the next line by 5
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "rms_norm_eps": config.norm_eps, "tie_word_embeddings": True, "initializer_range": 0.02,
        "torch_dtype": "float32", **token_ids(config),
    }  # fmt: skip


def token_ids(config: Config) -> dict:
    """End-of-text, the last id, is the only special token: it begins a text, ends it and pads it."""
    return dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), config.vocab_size - 1)


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
    return json.loads(encoding.model.to_str()) | {"decoder": {"type": "Sequence", "decoders": decoders}}


def fast_tokenizer(encoding: "tiktoken.Encoding | data.Unigram") -> dict:  # noqa: F821
    """tokenizer.json for Hugging Face's tokenizers: the ids of `encoding`, after an end-of-text token."""
    parts = unigram(encoding) if isinstance(encoding, data.Unigram) else byte_level_bpe(encoding)
    eot, plain = encoding.eot_token, dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    first = {"SpecialToken": {"id": data.EOT, "type_id": 0}}
    a, b = ({"Sequence": {"id": text, "type_id": 0}} for text in "AB")
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": parts["normalizer"],
        "added_tokens": [{"id": eot, "content": data.EOT, "special": True, **plain}],
        "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": {  # leaves the offsets as they are: the space before a word belongs to its token
            "type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b],
            "special_tokens": {data.EOT: {"id": data.EOT, "ids": [eot], "tokens": [data.EOT]}},
        },
        "decoder": parts["decoder"], "model": parts["model"],
    }  # fmt: skip


TOKENIZER_CONFIG = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    **dict.fromkeys(("bos_token", "eos_token", "pad_token"), data.EOT),
    "clean_up_tokenization_spaces": False,  # else decoding takes the space out of " ." and " n't"
    "model_input_names": ["input_ids", "attention_mask"],
}


# --- The model card ---------------------------------------------------------------------------------------------------


def scores(run: Path) -> list[tuple[str, str, str, str]]:
    """Rows of what was scored, score, of which weights, remark: the last evaluation and every eval-*.json of a run.

    Raises ValueError, naming the file, for a record that is damaged or a result that is not one of evaluate.py's.
    """
    evaluations = journal.evaluations(journal.read(run)) if (run / journal.FILE).exists() else []
    rows, last = [], evaluations[-1] if evaluations else None
    if last and last["val_loss"] is not None:
        rows.append(("validation loss, nats per token", f"{last['val_loss']:.3f}", "last", f"update {last['update']}"))
    if last and last["pairs"]:
        remark = f"update {last['update']}, mean of {len(last['pairs'])} paradigms"
        rows.append(("minimal pairs while training, %", f"{last['toy']:.1f}", "last", remark))
    for file in sorted(run.glob("eval-*.json")):
        try:
            result = json.loads(file.read_text())
            for row in result["scores"]:
                remark = f"{row['items']:,} items, 95 % interval {row['low']:.1f} to {row['high']:.1f}"
                rows.append((row["name"], f"{row['score']:.1f}", result["weights"], remark))
        except (ValueError, KeyError, TypeError):
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


def model_card(run: Path, config: dict, weights: str) -> str:
    sizes = {"parameters": config["parameters"], **config["model"], "block_size": config["flags"]["block_size"]}
    corpus = config.get("corpus", {})
    text = f"{corpus.get('corpus', config['flags']['data'])}" + (f", {corpus['n_words']:,} words" if corpus else "")
    of_weights = "those of the last update"
    if weights == "average":
        updates = json.loads((run / "average.json").read_text())["updates"]
        of_weights = f"the mean of those of updates {', '.join(map(str, updates))}"
    rows = scores(run)
    table = ["| scored | score | weights | |", "|---|---|---|---|"] + [f"| {' | '.join(row)} |" for row in rows]
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {run.resolve().name}

A small causal language model with the architecture of Qwen2, trained on {text}. It comes from a research
implementation of batch-wise convergent pre-training (BCP, Yoshida et al. 2025,
https://aclanthology.org/2025.babylm-main.36) and of the regimes that BCP is compared to; this one was trained with
`--mode={config["flags"]["mode"]}`. It follows no instructions. The weights are {of_weights}, in float32.

    from transformers import AutoModelForCausalLM, AutoTokenizer
    model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")

The tokenizer puts the end-of-text token `{data.EOT}` before every text, as in training. config.json says
`qwen2_moe` with 0 experts, which is Qwen2: for `qwen2`, newer transformers exchange the tokenizer's split pattern.

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


def export(run: Path, weights: str) -> dict[str, bytes]:
    """The files of an export by name. Raises ValueError, one line, for a run that is missing or damaged."""
    from safetensors.torch import save

    model, encoding, config = evaluate.load_run(run, pick_device("cpu"), weights)
    if encoding.n_vocab != model.config.vocab_size:
        raise ValueError(f"{run}: its tokenizer has {encoding.n_vocab} tokens, its model {model.config.vocab_size}")

    def as_json(content: dict) -> bytes:
        return (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()

    return {
        "model.safetensors": save(model.state_dict(), metadata={"format": "pt"}),
        "tokenizer.json": as_json(fast_tokenizer(encoding)),
        "tokenizer_config.json": as_json(TOKENIZER_CONFIG),
        "generation_config.json": as_json(token_ids(model.config)),
        "README.md": model_card(run, config, weights).encode(),
        # Last, because nothing loads a folder without it: an export that was cut off is seen to be none.
        "config.json": as_json(model_config(model.config, config["flags"]["block_size"])),
    }


def main(args: argparse.Namespace) -> None:
    parser = get_parser()
    if importlib.util.find_spec("safetensors") is None:
        parser.error("needs the package safetensors, which make test installs; or: pip install safetensors")
    try:
        check_target(args.dir, args.overwrite)
        files = export(args.run, args.weights)
    except ValueError as error:
        parser.error(str(error))
    except (KeyError, TypeError, AttributeError) as error:  # JSON, but not what train.py writes
        parser.error(f"{args.run}: damaged, {checkpoint.CONFIG} or a checkpoint lacks something ({error!r})")
    args.dir.mkdir(parents=True, exist_ok=True)
    (args.dir / "config.json").unlink(missing_ok=True)
    for name, content in files.items():
        (args.dir / name).write_bytes(content)
    print(f"written to {args.dir}: {sum(map(len, files.values())):,} bytes")


if __name__ == "__main__":
    try:
        main(ARGS)
    except OSError as error:
        sys.exit(f"tools.export: {error}")
