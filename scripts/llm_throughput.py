"""Tokens per second of the local backend by batch size, and how many answers depend on the batch they were in.

python scripts/llm_throughput.py --model smollm2 --precision float32 --batch 1 8 32
"""

from __future__ import annotations

import argparse
import time

import torch

from offline.llm.base import Explore, Message, Prompt, Sampling
from offline.llm.local import LocalBackend

LINES = "Item {}: Brinkwell cedar shaving cream {} ml. Grooming, Shaving, for sensitive skin, with aloe and vitamin E"


def prompts(count: int, tokens: int, temperature: float, lines: int) -> list[Prompt]:
    """Purchase histories of `lines` items or somewhat fewer, all different."""
    asked = []
    for number in range(count):
        history = "\n".join(LINES.format(line, number * 10 + line) for line in range(max(1, lines - number % 4)))
        message = Message("user", f"Purchase history, oldest first:\n{history}\n\nWhat does this customer like?")
        sampling = Sampling(temperature=temperature, max_tokens=tokens, seed=1)
        asked.append(Prompt((message,), sampling, Explore((1,), (1,))))
    return asked


def main() -> None:
    """Print one line for each batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--count", type=int, default=32, help="prompts")
    parser.add_argument("--lines", type=int, default=8, help="items in a prompt")
    parser.add_argument("--tokens", type=int, default=64, help="of one answer, at most")
    parser.add_argument("--temperature", type=float, default=0.7)
    arguments = parser.parse_args()
    print(f"{arguments.model} {arguments.precision}, {torch.get_num_threads()} thread(s)")
    alone: list[str] | None = None
    for batch in arguments.batch:
        with LocalBackend(arguments.model, batch=batch, precision=arguments.precision) as backend:
            list(backend.answer(prompts(1, 2, 0.7, 1)))  # the first call pays for what is set up once
            used = (backend.usage.prompt_tokens, backend.usage.completion_tokens)
            start, cpu = time.perf_counter(), time.process_time()
            asked = prompts(arguments.count, arguments.tokens, arguments.temperature, arguments.lines)
            answers = {answer.index: answer.texts[0] for answer in backend.answer(asked)}
            seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
            read, written = backend.usage.prompt_tokens - used[0], backend.usage.completion_tokens - used[1]
        texts = [answers[index] for index in range(len(asked))]
        alone = alone or texts
        same = sum(a == b for a, b in zip(texts, alone, strict=True))
        print(
            f"batch {batch:3}: {written / cpu:6.1f} tokens written for each second of CPU time, {cpu:.1f} s of it in "
            f"{seconds:.1f} s, {read} tokens read and {written} written; {same} of {len(texts)} answers as in line 1",
            flush=True,
        )


if __name__ == "__main__":
    main()
