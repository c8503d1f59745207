"""Run by the Python of vLLM's environment: answers prompts greedily and writes what vLLM made of each.

python vllm_process.py JOB.json RESULT.json
"""

import json
import os
import sys

# One process, whose model can be watched.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def answers(llm, prompts: list[dict], max_tokens: int) -> list[dict]:
    """Greedy tokens and their log probabilities."""
    from PIL import Image
    from vllm import SamplingParams

    requests: list[dict] = [{"prompt": prompt["text"]} for prompt in prompts]
    for request, prompt in zip(requests, prompts, strict=True):
        if prompt["images"]:
            request["multi_modal_data"] = {"image": [Image.open(path) for path in prompt["images"]]}
    sampling = SamplingParams(temperature=0, max_tokens=max_tokens, logprobs=1, ignore_eos=True)
    found = []
    for output in llm.generate(requests, sampling, use_tqdm=False):
        answer = output.outputs[0]
        found.append(
            {
                "prompt_ids": list(output.prompt_token_ids),
                "ids": list(answer.token_ids),
                "log_probabilities": [
                    step[token].logprob for token, step in zip(answer.token_ids, answer.logprobs, strict=True)
                ],
            }
        )
    return found


def main() -> None:
    with open(sys.argv[1], encoding="utf-8") as handle:
        job = json.load(handle)
    from vllm import LLM

    llm = LLM(
        model=job["checkpoint"],
        trust_remote_code=True,
        dtype="float32",
        max_model_len=job["max_model_len"],
        max_num_seqs=8,
        enable_prefix_caching=False,
        enforce_eager=True,
        distributed_executor_backend="uni",
        limit_mm_per_prompt={"image": 4},
        **job["options"],
    )
    positions: list[int] = []
    spans: list[tuple[int, int]] = []

    def watch(model) -> str:
        # vLLM calls the language model past its hooks.
        rotation = model.model.language_model.rotary_emb
        rotation.register_forward_pre_hook(lambda module, arguments: positions.extend(arguments[1][0].tolist()))
        place = model.get_mrope_input_positions

        def place_and_note(tokens, features):
            for feature in features:
                spans.extend(feature.mm_position.extract_embeds_range())
            return place(tokens, features)

        model.get_mrope_input_positions = place_and_note
        return f"{type(model).__module__}:{type(model).__name__}"

    (model_class,) = llm.apply_model(watch)
    alone = []
    for prompt in job["prompts"]:
        positions.clear()
        spans.clear()
        (answer,) = answers(llm, [prompt], job["max_tokens"])
        alone.append({**answer, "positions": list(positions), "spans": list(spans)})
    config = llm.llm_engine.vllm_config.model_config
    report = {
        "device": llm.llm_engine.vllm_config.device_config.device_type,
        "model class": model_class,
        "bidirectional spans asked for": config.is_mm_prefix_lm,
        "alone": alone,
        "together": answers(llm, job["prompts"], job["max_tokens"]),
    }
    with open(sys.argv[2], "w", encoding="utf-8") as handle:
        json.dump(report, handle)


if __name__ == "__main__":
    main()
