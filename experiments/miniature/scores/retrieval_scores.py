"""A retrieval encoder of the miniature by itself: does it find emblems that it never saw?

The same question as `retrieval_hit_2` of `emblem_scores`, with the bank's documents encoded on
the spot, so that encoders can be compared before anything else is trained.
"""

import dataclasses
from collections import Counter

import numpy as np
from etils import epath

from cm3jax.checkpoint import load_run
from cm3jax.emblems import bank_size, example, prompts
from cm3jax.evaluate import chance
from cm3jax.evaluate.exam import contents
from cm3jax.evaluate.protocol import PromptSet, Score, stamp
from cm3jax.evaluate.source_check import require_source
from cm3jax.learners import clip
from cm3jax.retrieval.clauses import clauses
from cm3jax.retrieval.clip_encoder import text_and_image
from cm3jax.retrieval.exact import ExactIndex
from cm3jax.retrieval.select import above_floor, select_documents, side_by_side


def evaluate_encoder(run_dir: epath.PathLike, count: int = 200) -> dict[str, Score]:
    """`retrieval_hit_2.text` and `.image`: of `count` prompts that name one memory-only emblem,
    the share whose two best documents hold an image of it.

    Raises `UserError` where `run_dir` holds no encoder.
    """
    experiment = load_run(run_dir).experiment
    require_source(run_dir, experiment.data, "emblems")
    encoder = clip.load(run_dir)
    seed, size = experiment.seed, experiment.clip.image_size
    training = experiment.data.emblems
    total = bank_size(training)
    documents = [example("bank", index, seed, size, training) for index in range(total)]
    parts = [text_and_image(document.segments) for document in documents]
    vectors = encoder.encode_documents(parts)
    pair = np.asarray([text is not None and image is not None for text, image in parts])
    config = dataclasses.replace(experiment.retrieval, candidates=2)
    asked = prompts("heldout", count, seed, size)
    texts = [clauses(prompt.text) if config.clauses else [prompt.text] for prompt in asked]
    queries = {
        "text": encoder.encode_texts([part for parts in texts for part in parts]),
        "image": encoder.encode_images(np.stack([prompt.image for prompt in asked])),
    }
    counts = {"text": [len(parts) for parts in texts], "image": [1] * len(asked)}
    shows = [
        document.emblems if image is not None else ()
        for document, (_, image) in zip(documents, parts, strict=True)
    ]
    holders = Counter(name for names in shows for name in names)
    names = [prompt.scene.names[0] for prompt in asked]
    guessed = float(np.mean([chance.of_a_hit(holders[name], total, 2) for name in names]))
    scores = {}
    for modality, query in queries.items():
        found = ExactIndex(vectors).search(query, config.pool)
        lists = side_by_side(found, counts[modality])
        most = max(counts[modality])
        lists = above_floor(lists, config.relevance_floor)
        chosen = select_documents(lists, vectors, pair, config, cuts=False, queries=most).ids
        right = [
            any(name in shows[row] for row in rows)
            for name, rows in zip(names, chosen, strict=True)
        ]
        protocol = stamp(
            PromptSet.of(
                f"emblems heldout, dataset seed {seed}, {size} pixels",
                "memory-only emblems",
                contents(asked),
            ),
            "the emblems that the documents' pictures are known to show",
            encoder.fingerprint,
            retrieval=config,
            bank=f"{total} documents, encoded by this encoder",
            retrieved=2,
            documents=f"exact search by the prompt's {modality}, best 2",
        )
        scores[f"retrieval_hit_2.{modality}"] = Score.share(right, guessed, protocol)
    return scores
