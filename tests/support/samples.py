"""Two rows of every benchmark task, written for these tests in the original file format, and what becomes of them."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def table(*rows: str) -> str:
    return "".join(row.replace(" | ", "\t") + "\n" for row in rows)


@dataclass(frozen=True)
class Sample:
    """
    Args:
        file: path of the validation file below the data folder.
        content: what stands in it.
        prompts: prompt's name to the first row's prompt.
        completions: prompt's name to the completions of all rows.
        hub: the same rows as the hub has them.
        columns: what the rows have beside id, prompt, completion, choices and label.
        choices: the first row's choices, where they vary.
    """

    file: str
    content: str | bytes
    prompts: dict[str, str]
    completions: dict[str, list[str]]
    hub: list[dict[str, Any]]
    columns: dict[str, list[Any]] = field(default_factory=dict)
    choices: list[str] | None = None

    def write(self, folder: Path) -> Path:
        path = folder / self.file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(self.content.encode() if isinstance(self.content, str) else self.content)
        return path


MNLI_LINES = ("Nobody came. | Someone came.", "It rains. | It is loud.", "She left early. | She left.")
MNLI_HUB = [
    {"premise": "Nobody came.", "hypothesis": "Someone came.", "label": 2, "idx": 0},
    {"premise": "It rains.", "hypothesis": "It is loud.", "label": 1, "idx": 1},
    {"premise": "She left early.", "hypothesis": "She left.", "label": 0, "idx": 2},
]
MNLI_LABELS = ("contradiction", "neutral", "entailment")
BRIDGE = "The bridge at Arl was closed . It had cracked ."
NEWS = "Ana Kray met Bo in Arl.\n@highlight\nKray is mayor of Arl"


def span(text: str, start: int = 0) -> dict[str, Any]:
    """The first `text` in `NEWS` at or after `start`; ReCoRD's end is the last character."""
    start = NEWS.index(text, start)
    return {"start": start, "end": start + len(text) - 1, "text": text}


def mnli(name: str, file: str, header: str, before: str, between: str) -> Sample:
    rows = [f"{before}{pair}{between}{label}" for pair, label in zip(MNLI_LINES, MNLI_LABELS, strict=True)]
    return Sample(
        file,
        table(header, *rows),
        {
            name: "Premise: Nobody came.\nHypothesis: Someone came.\n"
            "By the premise, is the hypothesis true, unclear or false? Answer:",
            f"{name}_reader": "Nobody came.\nA reader of this concludes: Someone came.\n"
            "Is the reader right: yes, maybe or no? Answer:",
        },
        {name: [" false", " unclear", " true"], f"{name}_reader": [" no", " maybe", " yes"]},
        MNLI_HUB,
    )


SAMPLES: dict[str, Sample] = {
    "sst2": Sample(
        "SST-2/dev.tsv",
        table("sentence | label", 'some "good" fun  | 1', "bad  | 0"),
        {
            "sst2": 'Review: some "good" fun\nSentiment:',
            "sst2_question": 'A critic wrote: "some "good" fun"\nDid the critic like the film? Answer:',
            "sst2_word": 'some "good" fun\nIn one word, this film is',
        },
        {"sst2": [" positive", " negative"], "sst2_question": [" yes", " no"], "sst2_word": [" good", " bad"]},
        [{"sentence": 'some "good" fun ', "label": 1, "idx": 0}, {"sentence": "bad ", "label": 0, "idx": 1}],
    ),
    "cola": Sample(
        "CoLA/dev.tsv",
        table("gj04 | 1 |  | She sings.", "gj04 | 0 | * | She sing."),
        {
            "cola": "Sentence: She sings.\nIs this sentence grammatical? Answer:",
            "cola_editor": 'An editor checks the grammar of each sentence and writes "wrong" or "correct" after it.\n'
            "She sings. ->",
        },
        {"cola": [" yes", " no"], "cola_editor": [" correct", " wrong"]},
        [{"sentence": "She sings.", "label": 1, "idx": 0}, {"sentence": "She sing.", "label": 0, "idx": 1}],
    ),
    "mrpc": Sample(
        "MRPC/dev.tsv",
        "\ufeff"
        + table(
            "Quality | #1 ID | #2 ID | #1 String | #2 String",
            '1 | 17 | 18 | He said "no . | He refused .',
            "0 | 19 | 20 | Shares rose . | Shares fell .",
        ),
        {
            "mrpc": 'First: He said "no .\nSecond: He refused .\nDo both sentences say the same? Answer:',
            "mrpc_paraphrase": '"He said "no ."\n"He refused ."\n'
            "The second sentence is a paraphrase of the first, true or false? It is",
        },
        {"mrpc": [" yes", " no"], "mrpc_paraphrase": [" true", " false"]},
        [
            {"sentence1": 'He said "no .', "sentence2": "He refused .", "label": 1, "idx": 0},
            {"sentence1": "Shares rose .", "sentence2": "Shares fell .", "label": 0, "idx": 1},
        ],
    ),
    "qqp": Sample(
        "QQP/dev.tsv",
        table(
            "id | qid1 | qid2 | question1 | question2 | is_duplicate",
            " |  |  | How do I bake? | How is baking done? | 1",
            "7 | 8 | 9 | Is it raining? | Where is Rome? | 0",
        ),
        {
            "qqp": "Question 1: How do I bake?\nQuestion 2: How is baking done?\nDo they ask the same? Answer:",
            "qqp_merge": "A forum merges questions that want the same answer and keeps the others apart.\n"
            "Question: How do I bake?\nQuestion: How is baking done?\nDecision:",
        },
        {"qqp": [" yes", " no"], "qqp_merge": [" merge", " keep"]},
        [
            {"question1": "How do I bake?", "question2": "How is baking done?", "label": 1, "idx": 0},
            {"question1": "Is it raining?", "question2": "Where is Rome?", "label": 0, "idx": 1},
        ],
    ),
    "stsb": Sample(
        "STS-B/dev.tsv",
        table(
            "index | genre | filename | year | old_index | source1 | source2 | sentence1 | sentence2 | score",
            "0 | g | f | y | 1 | none | none | A dog runs. | A dog is running. | 4.750",
            "1 | g | f | y | 2 | none | none | A cat. | A car. | 0.000",
            "2 | g | f | y | 3 | none | none | A cat. | The cat. | 5.000",
        ),
        {
            "stsb": "Sentence A: A dog runs.\nSentence B: A dog is running.\n"
            "How close are they in meaning, from 0.0 (unrelated) to 5.0 (the same)? Answer:",
            "stsb_grade": "A grade from 0.0 to 5.0 says how much of its meaning one sentence shares with another; 5.0 "
            "means that they are equivalent.\n1. A dog runs.\n2. A dog is running.\nGrade:",
        },
        {key: [" 4.8", " 0.0", " 5.0"] for key in ("stsb", "stsb_grade")},
        [
            {"sentence1": "A dog runs.", "sentence2": "A dog is running.", "label": 4.75, "idx": 0},
            {"sentence1": "A cat.", "sentence2": "A car.", "label": 0.0, "idx": 1},
            {"sentence1": "A cat.", "sentence2": "The cat.", "label": 5.0, "idx": 2},
        ],
        {"target": [4.75, 0.0, 5.0]},
    ),
    # Twelve columns in the original file; those that do not matter are shortened here.
    "mnli": mnli(
        "mnli",
        "MNLI/dev_matched.tsv",
        "index | promptID | genre | sentence1 | sentence2 | label1 | gold_label",
        "0 | 1 | fiction | ",
        " | neutral | ",
    ),
    "mnli_mismatched": mnli(
        "mnli_mismatched",
        "MNLI/dev_mismatched.tsv",
        "index | genre | sentence1 | sentence2 | gold_label",
        "0 | letters | ",
        " | ",
    ),
    "qnli": Sample(
        "QNLI/dev.tsv",
        table(
            "index | question | sentence | label",
            "0 | Who built it? | Bo built it in 1900. | entailment",
            "1 | When? | It is red. | not_entailment",
        ),
        {
            "qnli": "Question: Who built it?\nSentence: Bo built it in 1900.\n"
            "Does the sentence answer the question? Answer:",
            "qnli_source": 'From an encyclopedia: "Bo built it in 1900."\nSomebody asks: "Who built it?"\n'
            "For this question the quotation is helpful or useless? It is",
        },
        {"qnli": [" yes", " no"], "qnli_source": [" helpful", " useless"]},
        [
            {"question": "Who built it?", "sentence": "Bo built it in 1900.", "label": 0, "idx": 0},
            {"question": "When?", "sentence": "It is red.", "label": 1, "idx": 1},
        ],
    ),
    "rte": Sample(
        "RTE/dev.tsv",
        table("index | sentence1 | sentence2 | label", "0 | A. | B. | not_entailment", "1 | C. | D. | entailment"),
        {
            "rte": "Text: A.\nClaim: B.\nDoes the text support the claim? Answer:",
            "rte_true": "Suppose that this is so: A.\nThen it must be true or false that: B.\nThe answer is",
        },
        {"rte": [" no", " yes"], "rte_true": [" false", " true"]},
        [
            {"sentence1": "A.", "sentence2": "B.", "label": 1, "idx": 0},
            {"sentence1": "C.", "sentence2": "D.", "label": 0, "idx": 1},
        ],
    ),
    "wnli": Sample(
        "WNLI/dev.tsv",
        table(
            "index | sentence1 | sentence2 | label",
            "0 | The cup fell on the tile and it broke. | The cup broke. | 1",
            "1 | Ann thanked Eve because she had helped. | Ann had helped. | 0",
        ),
        {
            "wnli": "Text: The cup fell on the tile and it broke.\nClaim: The cup broke.\n"
            "Does the claim follow from the text? Answer:",
            "wnli_reading": "The cup fell on the tile and it broke.\nSomeone reads this as: The cup broke.\n"
            "This reading is wrong or correct? It is",
        },
        {"wnli": [" yes", " no"], "wnli_reading": [" correct", " wrong"]},
        [
            {
                "sentence1": "The cup fell on the tile and it broke.",
                "sentence2": "The cup broke.",
                "label": 1,
                "idx": 0,
            },
            {
                "sentence1": "Ann thanked Eve because she had helped.",
                "sentence2": "Ann had helped.",
                "label": 0,
                "idx": 1,
            },
        ],
    ),
    "boolq": Sample(
        "BoolQ/val.jsonl",
        lines(
            {"question": "is it", "passage": "P.", "idx": 0, "label": True},
            {"question": "is it not", "passage": "P.", "idx": 1, "label": False},
        ),
        {
            "boolq": "Passage: P.\nQuestion: is it?\nAnswer yes or no:",
            "boolq_true": "P.\n\nGoing by what is written above, is it? True or false:",
        },
        {"boolq": [" yes", " no"], "boolq_true": [" true", " false"]},
        [
            {"question": "is it", "passage": "P.", "idx": 0, "label": 1},
            {"question": "is it not", "passage": "P.", "idx": 1, "label": 0},
        ],
    ),
    "cb": Sample(
        "CB/val.jsonl",
        lines(
            {"premise": "A: I doubt it rains.", "hypothesis": "it rains", "label": "contradiction", "idx": 0},
            {"premise": "B: I know it rains.", "hypothesis": "it rains", "label": "entailment", "idx": 1},
            {"premise": "C: If it rains, go.", "hypothesis": "it rains", "label": "neutral", "idx": 2},
        ),
        {
            "cb": "Text: A: I doubt it rains.\nClaim: it rains\n"
            "By the text, is the claim true, false or unclear? Answer:",
            "cb_speaker": "A: I doubt it rains.\n\nDoes the last speaker believe that it rains? Yes, no or maybe:",
        },
        {"cb": [" false", " true", " unclear"], "cb_speaker": [" no", " yes", " maybe"]},
        [
            {"premise": "A: I doubt it rains.", "hypothesis": "it rains", "label": 1, "idx": 0},
            {"premise": "B: I know it rains.", "hypothesis": "it rains", "label": 0, "idx": 1},
            {"premise": "C: If it rains, go.", "hypothesis": "it rains", "label": 2, "idx": 2},
        ],
    ),
    "copa": Sample(
        "COPA/val.jsonl",
        lines(
            *(
                copa := [
                    {
                        "premise": "I fell.",
                        "choice1": "I sang.",
                        "choice2": "It was icy.",
                        "question": "cause",
                        "label": 1,
                        "idx": 0,
                    },
                    {
                        "premise": "I fell.",
                        "choice1": "I hurt my knee.",
                        "choice2": "I won.",
                        "question": "effect",
                        "label": 0,
                        "idx": 1,
                    },
                ]
            )
        ),
        {"copa": "Situation: I fell.\nWhat was the cause? Answer:", "copa_story": "I fell. The reason:"},
        {key: [" It was icy.", " I hurt my knee."] for key in ("copa", "copa_story")},
        copa,
        choices=[" I sang.", " It was icy."],
    ),
    "multirc": Sample(
        "MultiRC/val.jsonl",
        lines(
            {
                "idx": 3,
                "version": 1.1,
                "passage": {
                    "text": "The bridge at Arl was closed .  It had cracked . ",
                    "questions": [
                        {
                            "idx": 5,
                            "question": "Why was it closed?",
                            "answers": [
                                {"text": "It had cracked", "idx": 0, "label": 1},
                                {"text": "Snow", "idx": 1, "label": 0},
                            ],
                        },
                        {"idx": 6, "question": "Where?", "answers": [{"text": "Arl", "idx": 2, "label": 1}]},
                    ],
                },
            }
        ),
        {
            "multirc": f"Passage: {BRIDGE}\nQuestion: Why was it closed?\nProposed answer: It had cracked\n"
            "Is the proposed answer right? Answer:",
            "multirc_grade": f"{BRIDGE}\n\nA pupil was asked: Why was it closed?\nThe pupil answered: It had cracked\n"
            "The teacher marks the answer as",
        },
        {"multirc": [" yes", " no", " yes"], "multirc_grade": [" right", " wrong", " right"]},
        [
            {
                "paragraph": "The bridge at Arl was closed .  It had cracked . ",
                "question": question,
                "answer": answer,
                "idx": {"paragraph": 3, "question": idx, "answer": index},
                "label": label,
            }
            for index, (idx, question, answer, label) in enumerate(
                [
                    (5, "Why was it closed?", "It had cracked", 1),
                    (5, "Why was it closed?", "Snow", 0),
                    (6, "Where?", "Arl", 1),
                ]
            )
        ],
        {"group": ["3-5", "3-5", "3-6"]},
    ),
    "record": Sample(
        "ReCoRD/val.jsonl",
        lines(
            {
                "source": "S",
                "idx": 2,
                "passage": {
                    "text": NEWS,
                    "entities": [span("Ana Kray"), span("Bo"), span("Arl"), span("Kray", 20), span("Arl", 30)],
                },
                "qas": [
                    {
                        "idx": 4,
                        "query": "@placeholder governs Arl.",
                        "answers": [span("Kray", 20), span("Ana Kray")],
                    },
                    {"idx": 5, "query": "She met @placeholder.", "answers": [span("Bo")]},
                ],
            }
        ),
        {
            "record": "Ana Kray met Bo in Arl.\n- Kray is mayor of Arl\n\nQuery: ____ governs Arl.\n"
            "The name that fills the blank is",
            "record_reader": "News: Ana Kray met Bo in Arl.\n- Kray is mayor of Arl\n\n"
            "A reader adds, leaving out a name: [...] governs Arl.\nLeft out was",
        },
        {key: [" Ana Kray", " Bo"] for key in ("record", "record_reader")},
        [
            {
                "passage": NEWS,
                "query": query,
                "entities": ["Bo", "Arl", "Kray", "Ana Kray"],
                "answers": answers,
                "idx": {"passage": 2, "query": index},
            }
            for index, query, answers in (
                (4, "@placeholder governs Arl.", ["Ana Kray", "Kray"]),
                (5, "She met @placeholder.", ["Bo"]),
            )
        ],
        {"answers": [["Ana Kray", "Kray"], ["Bo"]]},
        choices=[" Ana Kray", " Arl", " Bo", " Kray"],
    ),
    "sglue_rte": Sample(
        "RTE/val.jsonl",
        lines(
            {"premise": "A.", "hypothesis": "B.", "label": "not_entailment", "idx": 0},
            {"premise": "C.", "hypothesis": "D.", "label": "entailment", "idx": 1},
        ),
        {
            "sglue_rte": "Text: A.\nClaim: B.\nDoes the text support the claim? Answer:",
            "sglue_rte_true": "Suppose that this is so: A.\nThen it must be true or false that: B.\nThe answer is",
        },
        {"sglue_rte": [" no", " yes"], "sglue_rte_true": [" false", " true"]},
        [
            {"premise": "A.", "hypothesis": "B.", "label": 1, "idx": 0},
            {"premise": "C.", "hypothesis": "D.", "label": 0, "idx": 1},
        ],
    ),
    "wic": Sample(
        "WiC/val.jsonl",
        lines(
            *(
                {
                    "word": "bank",
                    "sentence1": "A river bank.",
                    "sentence2": s,
                    "idx": i,
                    "label": label,
                    "version": 1.1,
                }
                for i, (s, label) in enumerate([("The bank lends.", False), ("The left bank.", True)])
            )
        ),
        {
            "wic": "Sentence 1: A river bank.\nSentence 2: The bank lends.\n"
            'Does "bank" mean the same in both? Answer:',
            "wic_dictionary": 'A dictionary lists the senses of "bank".\n- A river bank.\n- The bank lends.\n'
            "The senses in these two examples are",
        },
        {"wic": [" no", " yes"], "wic_dictionary": [" different", " identical"]},
        [
            {"word": "bank", "sentence1": "A river bank.", "sentence2": "The bank lends.", "idx": 0, "label": 0},
            {"word": "bank", "sentence1": "A river bank.", "sentence2": "The left bank.", "idx": 1, "label": 1},
        ],
    ),
    "wsc": Sample(
        "WSC/val.jsonl",
        lines(
            *(
                {
                    "text": "Tom told Jim that he was late, so he ran.",
                    "target": {"span1_index": i, "span1_text": name, "span2_index": 8, "span2_text": "he"},
                    "idx": i,
                    "label": label,
                }
                for i, name, label in ((0, "Tom", False), (2, "Jim", True))
            )
        ),
        {
            "wsc": "Text: Tom told Jim that he was late, so *he* ran.\nDoes *he* stand for Tom? Answer:",
            "wsc_refers": "Tom told Jim that he was late, so he ran.\n\n"
            'In the words "was late, so he ran.", the pronoun "he" refers to "Tom". True or false:',
        },
        {"wsc": [" no", " yes"], "wsc_refers": [" false", " true"]},
        [
            {
                "text": "Tom told Jim that he was late, so he ran.",
                "span1_index": i,
                "span1_text": name,
                "span2_index": 8,
                "span2_text": "he",
                "idx": i,
                "label": label,
            }
            for i, name, label in ((0, "Tom", 0), (2, "Jim", 1))
        ],
    ),
    "ag_news": Sample(
        "AGNews/val.csv",
        'Class Index,Title,Description\r\n3,"T, ""x""", D.\r\n1,Only,A  title.\r\n',
        {
            "ag_news": 'News: T, "x" D.\nTopic:',
            "ag_news_section": "A newspaper has four sections: politics, sports, business and science.\n"
            'Item: T, "x" D.\nThis item goes to the section',
        },
        {"ag_news": [" Business", " World"], "ag_news_section": [" business", " politics"]},
        [{"text": 'T, "x"  D.', "label": 2}, {"text": "Only A  title.", "label": 0}],
    ),
    "banking77": Sample(
        "Banking77/test.csv",
        'text,category\n"Where is my card, please?",card_arrival\n Is it back ?,reverted_card_payment?\n',
        {
            "banking77": "Customer: Where is my card, please?\nTopic:",
            "banking77_desk": "A bank's help desk sorts questions by topic.\nQuestion: Where is my card, please?\n"
            "The question goes to the topic",
        },
        {
            "banking77": [" card arrival", " reverted card payment?"],
            "banking77_desk": [" card arrival", " reverted card payment?"],
        },
        [
            {"text": "Where is my card, please?", "label": 11, "label_text": "card_arrival"},
            {"text": " Is it back ?", "label": 53, "label_text": "reverted_card_payment?"},
        ],
    ),
    "clinc150": Sample(
        "CLINC150/data_full.json",
        json.dumps(
            {
                "oos_test": [["who won the fair", "oos"]],
                "test": [["mine is gone ", "report_lost_card"], ["so what is my w2", "w2"], ["nope", "no"]],
            }
        ),
        {
            "clinc150": "Request: mine is gone\nTopic:",
            "clinc150_assistant": "An assistant sorts what people say to it by topic.\nSomeone says: mine is gone\n"
            "The topic of this is",
        },
        {
            "clinc150": [" report lost card", " W-2 form", " no"],
            "clinc150_assistant": [" report lost card", " W-2 form", " no"],
        },
        [
            {"text": "mine is gone ", "intent": 12},
            {"text": "so what is my w2", "intent": 122},
            {"text": "nope", "intent": 30},
        ],
    ),
    "trec": Sample(
        "TREC/TREC_10.label",
        b"LOC:city What is a sister\xf0city ?\nNUM:date When was caf\xe9 culture born ?\n\nABBR:exp What is NATO ?\n",
        {
            "trec": "Question: What is a sister city ?\nKind of answer:",
            "trec_topic": "What is a sister city ?\nThe answer to this question belongs under one of the headings "
            "(abbreviations, entities, descriptions, humans, locations, numbers), namely",
        },
        {
            "trec": [" place", " number", " abbreviation"],
            "trec_topic": [" locations", " numbers", " abbreviations"],
        },
        [
            {"text": "What is a sister city ?", "coarse_label": 4, "fine_label": 32},
            {"text": "When was café culture born ?", "coarse_label": 5, "fine_label": 39},
            {"text": "What is NATO ?", "coarse_label": 0, "fine_label": 1},
        ],
    ),
}
# Not in SAMPLES: what the package has the data of, and what has no format of its own.
OTHERS = ("quickstart", "instruct")
