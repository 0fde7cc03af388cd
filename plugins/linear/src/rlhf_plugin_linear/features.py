"""From texts to a sparse matrix: TF-IDF of responses and prompts, and the products of their words.

A product has the value TF-IDF(word of the prompt) * TF-IDF(word of the response) and a column of its own, so that "the
router" may be the answer to one question and not to another. Between two responses to one prompt all that depends on
the prompt alone cancels; products are how a linear model can read the prompt at all. With them the similarity of two
samples is that of their responses plus similarity of responses times similarity of prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from rlhf_core.interfaces import State
from rlhf_core.records import Prompt, Sample
from rlhf_core.segmentation import words
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer

from .config import LinearRewardConfig

Matrix: TypeAlias = Any  # scipy.sparse.csr_array of float64; scipy comes without types

PROMPT_WORDS = 16  # of a prompt only the words of highest TF-IDF are multiplied, or long prompts would cost too much
EVERYWHERE = 0.5  # a word that more than this share of the prompts have says nothing about what a prompt is about
CHUNK = 512  # samples whose products are made at once


class TextFeatures:
    """Columns: n-grams of the response, words of the prompt, products; each part is there if the config asks for it.

    The first two have Euclidean norm 1 in every sample (or 0), with 1 + log(count) for the count of a term.
    """

    def __init__(self, config: LinearRewardConfig) -> None:
        self.config = config
        self._vectorizers: dict[str, TfidfVectorizer] = {}
        self._products = np.zeros(0, dtype=np.int64)  # sorted: (index of the prompt's word) * R + the response's word

    @property
    def count(self) -> int:
        """The number of columns."""
        own = [len(self._vectorizers[name].vocabulary_) for name in self._columns]
        return sum(own) + len(self._products)

    @property
    def _columns(self) -> list[str]:
        """The vocabularies whose terms have columns of their own."""
        names = ["ngrams"] + ["prompt"] * (self.config.features == "prompt-response")
        return [name for name in names if name in self._vectorizers]

    @property
    def _wanted(self) -> list[str]:
        names = ["ngrams"]
        if self.config.features == "prompt-response" or self.config.cross:
            names.append("prompt")
        return names + ["words"] * self.config.cross

    def learn(self, samples: Sequence[Sample]) -> Matrix:
        """Choose columns and weigh terms on `samples`, and give their matrix (B, F).

        Raises:
            ValueError: no n-gram is in `min_count` responses.
        """
        self._vectorizers, self._products = {}, self._products[:0]
        for name in self._wanted:
            vectorizer = self._make(name, min_df=self.config.min_count, max_features=self.config.max_features)
            try:
                vectorizer.fit(_texts(name, samples))
            except ValueError:  # nothing is left: prompts may well be all different or empty, responses may not
                if name == "ngrams":
                    raise
            else:
                self._vectorizers[name] = vectorizer
        if {"prompt", "words"} <= self._vectorizers.keys() and self.config.cross:
            self._products = self._frequent_products(samples)
        return self.matrix(samples)

    def matrix(self, samples: Sequence[Sample]) -> Matrix:
        """(B, F); a sample's row does not depend on the others."""
        if not samples:
            return sparse.csr_array((0, self.count))
        chunks = [samples[start : start + CHUNK] for start in range(0, len(samples), CHUNK)]
        return sparse.vstack([self._rows(chunk) for chunk in chunks], format="csr")

    def _rows(self, samples: Sequence[Sample]) -> Matrix:
        parts = [self._tfidf(name, samples) for name in self._columns]
        if len(self._products):
            parts.append(self._multiplied(*self._factors(samples)))
        return sparse.hstack(parts, format="csr")

    def _make(self, name: str, **options: Any) -> TfidfVectorizer:
        """A vectorizer that is yet to be fitted, or to be given a vocabulary and its idf."""
        ngrams = self.config.ngrams if name == "ngrams" else (1, 1)
        reader: dict[str, Any] = {"tokenizer": words, "token_pattern": None}
        if name == "prompt":
            reader["max_df"] = EVERYWHERE
        if name == "ngrams" and self.config.analyzer == "char":
            reader = {"analyzer": "char"}
        return TfidfVectorizer(ngram_range=ngrams, sublinear_tf=True, **reader, **options)

    def _tfidf(self, name: str, samples: Sequence[Sample]) -> Matrix:
        return sparse.csr_array(self._vectorizers[name].transform(_texts(name, samples)))

    # --- products ----------------------------------------------------------------------------------------------------

    def _factors(self, samples: Sequence[Sample]) -> tuple[Matrix, Matrix]:
        """What is multiplied: the most telling words of the prompts (B, P), and all words of the responses (B, R)."""
        return _largest(self._tfidf("prompt", samples), PROMPT_WORDS), self._tfidf("words", samples)

    def _frequent_products(self, samples: Sequence[Sample]) -> NDArray[np.int64]:
        prompts, responses = self._factors(samples)
        there = [(factor > 0).astype(np.int32) for factor in (prompts, responses)]
        together = (there[0].T @ there[1]).tocoo()  # (P, R): in how many samples both words are
        codes = together.row.astype(np.int64) * responses.shape[1] + together.col
        often = together.data >= self.config.min_count
        codes, counts = codes[often], together.data[often]
        order = np.lexsort((codes, -counts))[: self.config.max_features]
        return np.sort(codes[order])

    def _multiplied(self, prompts: Matrix, responses: Matrix) -> Matrix:
        """(B, P) and (B, R) to (B, products): row by row the Kronecker product, of which the known columns are kept."""
        per_prompt, per_response = np.diff(prompts.indptr), np.diff(responses.indptr)
        sizes = per_prompt.astype(np.int64) * per_response
        row = np.repeat(np.arange(len(sizes), dtype=np.int32), sizes)
        place = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)  # inside its row
        left = prompts.indptr[row] + place // per_response[row]
        right = responses.indptr[row] + place % per_response[row]
        codes = prompts.indices[left].astype(np.int64) * responses.shape[1] + responses.indices[right]
        column = np.minimum(np.searchsorted(self._products, codes), len(self._products) - 1)
        known = self._products[column] == codes
        values = (prompts.data[left] * responses.data[right])[known]
        where = row[known], column[known].astype(np.int32)  # scikit-learn takes no wider indices
        return sparse.csr_array((values, where), shape=(len(sizes), len(self._products)))

    # --- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> State:
        """Vocabularies in the order of their columns, their idf, and the columns of the products."""
        state: State = {"products": torch.from_numpy(self._products.copy())}
        for name, vectorizer in self._vectorizers.items():
            terms = [str(term) for term in vectorizer.get_feature_names_out()]
            state[name] = {"vocabulary": terms, "idf": torch.from_numpy(vectorizer.idf_.copy())}
        return state

    def load_state_dict(self, state: State) -> None:
        self._products = state["products"].numpy().copy()
        self._vectorizers = {}
        for name in ("ngrams", "prompt", "words"):
            if name in state:
                terms = {term: column for column, term in enumerate(state[name]["vocabulary"])}
                self._vectorizers[name] = self._make(name, vocabulary=terms)
                self._vectorizers[name].idf_ = state[name]["idf"].numpy().copy()


def _texts(name: str, samples: Sequence[Sample]) -> list[str]:
    return [question(sample.prompt) if name == "prompt" else sample.response for sample in samples]


def _largest(matrix: Matrix, count: int) -> Matrix:
    """`matrix` with the `count` largest values of every row, of equal ones the first."""
    row = np.repeat(np.arange(matrix.shape[0], dtype=np.int32), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -matrix.data, row))
    rank = np.arange(len(row)) - matrix.indptr[row]  # the order is by row first, so that rows stay where they were
    kept = np.sort(order[rank < count])
    return sparse.csr_array((matrix.data[kept], (row[kept], matrix.indices[kept])), shape=matrix.shape)


def question(prompt: Prompt) -> str:
    """What a response answers: a prompt that is text, or the last message of a chat."""
    return prompt.text if isinstance(prompt.text, str) else prompt.text[-1].content
