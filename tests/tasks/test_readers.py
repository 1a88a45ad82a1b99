"""Every public data set in its published layout, with broken records among good ones.

Where each layout is from stands in the reader's docstring; the files here are written by hand.
"""

import json

import numpy as np
import PIL.Image
import pytest
from etils import epath

from cm3jax.errors import UserError
from cm3jax.tasks import READERS, grounded
from cm3jax.tasks.task import Case, Derived, Overlay, Skipped
from cm3jax.tokenizers.image_tokenizer import load_picture


def put(folder, files):
    """Write files: JSON values, texts, or sizes of images."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif isinstance(content, tuple):
            PIL.Image.new("RGB", content).save(path)
        else:
            path.write_text(json.dumps(content))


def read(name, folder, split="train"):
    """The cases by key, and the reasons by key, of a data set."""
    found = list(READERS[name](epath.Path(folder), split))
    cases = {case.key: case for case in found if isinstance(case, Case)}
    return cases, {case.key: case.reason for case in found if isinstance(case, Skipped)}


def values(case, folder):
    """The fields, files as their names below the folder."""
    found = {}
    for name, value in case.values.items():
        file = value.path if isinstance(value, Overlay) else value
        found[name] = (
            str(file).removeprefix(f"{folder}/") if isinstance(file, epath.Path) else value
        )
    return found


COCO = {
    "annotations/captions_train2017.json": {
        "info": {"year": 2017},
        "licenses": [{"id": 4, "name": "Attribution License"}],
        "images": [
            {"license": 4, "file_name": "000000000009.jpg", "height": 480, "width": 640, "id": 9},
            {"license": 4, "file_name": "../secret.jpg", "height": 480, "width": 640, "id": 25},
        ],
        "annotations": [
            {"image_id": 9, "id": 661611, "caption": "A plate\n of food "},
            {"image_id": 77, "id": 1, "caption": "nowhere"},
            {"image_id": 25, "id": 2, "caption": "outside"},
            {"image_id": 9, "id": 3, "caption": "  "},
            {"image_id": 9, "id": 4},
            "no object",
        ],
    },
}


def test_coco_captions(tmp_path):
    put(tmp_path, COCO)
    cases, skipped = read("coco_captions", tmp_path)
    assert list(cases) == ["caption-661611"]
    case = cases["caption-661611"]
    assert case.task.name == "caption"
    assert values(case, tmp_path) == {
        "answer": "A plate of food",
        "image": "train2017/000000000009.jpg",
    }
    assert case.licence == "COCO image licence 4"
    assert "no image 77" in skipped["caption-1"]
    assert "not a file name" in skipped["caption-2"]
    assert "not a text" in skipped["caption-3"]
    assert "it has no 'caption'" in skipped["caption-4"]
    assert len(skipped) == 5


def test_maps_that_are_computed_from_coco(tmp_path):
    put(tmp_path, COCO)
    for name, task in (("coco_canny", "edges"), ("coco_scribble", "scribble")):
        cases, skipped = read(name, tmp_path)
        case = cases["caption-661611"]
        assert case.task.name == task
        assert isinstance(case.values["image"], Derived)
        assert case.values["image"].path == case.values["answer"]
        assert case.values["caption"] == "A plate of food"
        assert len(skipped) == 5


def test_coco_boxes(tmp_path):
    images = COCO["annotations/captions_train2017.json"]["images"]
    put(
        tmp_path,
        COCO
        | {
            "train2017/000000000009.jpg": (640, 480),
            "annotations/instances_train2017.json": {
                "images": [*images, {"license": 1, "file_name": "a.jpg", "id": 30}],
                "annotations": [
                    # 640 x 480: the square that is seen begins at x = 80.
                    {"image_id": 9, "category_id": 1, "bbox": [80, 0, 240, 480], "iscrowd": 0},
                    {"image_id": 9, "category_id": 2, "bbox": [0, 0, 90, 100], "iscrowd": 0},
                    {"image_id": 9, "category_id": 1, "bbox": [300, 0, 90, 100], "iscrowd": 1},
                    {"image_id": 9, "category_id": 2, "bbox": [500, 120, 140, 120], "iscrowd": 0},
                    {"image_id": 30, "category_id": 2, "bbox": [0, 0, 10, 10], "iscrowd": 0},
                ],
                "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "dining table"}],
            },
        },
    )
    cases, skipped = read("coco_boxes", tmp_path)
    (case,) = cases.values()
    assert case.values["caption"] == "A plate of food"
    assert grounded.parse_boxes(case.values["boxes"]) == [
        grounded.Box("person", 0, 0, 128, 255),
        grounded.Box("dining table", 224, 64, 255, 128),
    ]
    assert "not a file name" in skipped["image-1"]
    assert "it has no 'width'" in skipped["image-2"]


def test_objects365_boxes(tmp_path):
    put(
        tmp_path,
        {
            "images/v1/patch8/objects365_v1_00420917.jpg": (512, 512),
            "images/v1/b.jpg": (512, 512),
            "zhiyuan_objv2_train.json": {
                "images": [
                    {
                        "height": 512,
                        "id": 420917,
                        "license": 5,
                        "width": 512,
                        "file_name": "images/v1/patch8/objects365_v1_00420917.jpg",
                        "url": "",
                    },
                    {"height": 512, "id": 1, "width": 512, "file_name": "images/v1/b.jpg"},
                ],
                "annotations": [
                    {
                        "id": 1,
                        "iscrowd": 0,
                        "isfake": 0,
                        "area": 1.0,
                        "isreflected": 0,
                        "bbox": [0.0, 256.0, 128.0, 128.0],
                        "image_id": 420917,
                        "category_id": 84,
                    }
                ],
                "categories": [{"name": "Soccer", "id": 84}],
            },
        },
    )
    cases, skipped = read("objects365_boxes", tmp_path)
    assert values(cases["image-0"], tmp_path) == {
        "caption": "Soccer",
        "boxes": "Soccer at (0, 128) -> (64, 192)",
        "answer": "images/v1/patch8/objects365_v1_00420917.jpg",
    }
    assert skipped == {"image-1": "it has no box inside the image's square"}


def test_open_images_boxes(tmp_path):
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    flags = ",0,0,0,0,0"
    put(
        tmp_path,
        {
            "oidv6-train-annotations-bbox.csv": f"{head}IsGroupOf,IsDepiction,IsInside\n"
            f"00a,xclick,/m/011k07,1,0.25,0.75,0.0,0.5{flags}\n"
            "00a,xclick,/m/011k07,1,0.0,1.0,0.0,1.0,0,0,1,0,0\n"
            f"00b,xclick,/m/unknown,1,0.25,0.75,0.0,0.5{flags}\n"
            f"00c,xclick,/m/011k07,1,0.25,0.75,0.0,0.5{flags}\n"
            f'00a,"xclick,/m/011k07,1,0.25,0.75,0.0,0.5{flags}\n'
            f"{'0' * 140_000},xclick\n"
            f"00d,xclick,/m/011k07,1,left,0.75,0.0,0.5{flags}\n",
            "class-descriptions-boxable.csv": '/m/1,"Open\n/m/011k07,Tortoise\n/m/2,"A, b"\n',
            "train/00a.jpg": (200, 100),
            "train/00b.jpg": (100, 100),
            "train/00c.jpg": "<html>not found</html>",
            "train/00d.jpg": (100, 100),
        },
    )
    cases, skipped = read("open_images_boxes", tmp_path)
    assert values(cases["00a"], tmp_path) == {
        "caption": "tortoise",
        "boxes": "tortoise at (0, 0) -> (255, 128)",
        "answer": "train/00a.jpg",
    }
    assert "/m/unknown" in skipped["00b"]
    assert skipped["00c"] == "00c.jpg is missing or no image"
    assert "damaged" in skipped["00d"]


def test_flickr30k(tmp_path):
    lines = [f"{i}.jpg#{n}\tCaption {n} of {i} ." for i in range(50) for n in range(2)]
    put(tmp_path, {"results_20130124.token": "\n".join([*lines, "no tab", ""])})
    training, skipped = read("flickr30k", tmp_path)
    held_back, _ = read("flickr30k", tmp_path, "validation")
    assert len(training) == 98
    assert [case.values["answer"] for case in held_back.values()] == [
        "Caption 0 of 49 .",
        "Caption 1 of 49 .",
    ]
    assert list(skipped) == ["results_20130124.token:101"]
    first = next(iter(training.values()))
    assert values(first, tmp_path)["image"] == "flickr30k-images/0.jpg"


def test_localized_narratives(tmp_path):
    record = {
        "dataset_id": "mscoco_train2017",
        "image_id": "137576",
        "annotator_id": 93,
        "caption": "In this image there are cows.",
        "timed_caption": [{"utterance": "In this", "start_time": 0.0, "end_time": 0.4}],
        "traces": [[{"x": 0.2, "y": -0.05, "t": 0.022}]],
        "voice_recording": "coco_train/coco_train_137576_93.ogg",
    }
    other = record | {"dataset_id": "open_images", "image_id": "000a1249af2bc5f0"}
    lines = [json.dumps(record), json.dumps(other), '{"caption": ', json.dumps({"caption": 3})]
    lines.append('{"annotator_id": %s}' % ("9" * 5000))
    name = "coco_train_localized_narratives-00000-of-00004.jsonl"
    put(tmp_path, {name: "\n".join(lines)})
    cases, skipped = read("localized_narratives", tmp_path)
    assert [values(case, tmp_path)["image"] for case in cases.values()] == [
        "images/000000137576.jpg",
        "images/000a1249af2bc5f0.jpg",
    ]
    assert {case.task.name for case in cases.values()} == {"narration"}
    assert skipped == {
        f"{name}:3": "it is not a JSON object",
        f"{name}:4": "its 'caption' is not a text",
        f"{name}:5": "it is not a JSON object",
    }


def test_image_paragraphs(tmp_path):
    url = "https://cs.stanford.edu/people/rak248/VG_100K_2/2356347.jpg"
    put(
        tmp_path,
        {
            "paragraphs_v1.json": [
                {"url": url, "image_id": 2356347, "paragraph": "A large building.  It is red."},
                {"url": url, "image_id": 2, "paragraph": "Of another split."},
                {"url": url, "image_id": 3},
            ],
            "train_split.json": [2356347, 3],
            "val_split.json": [2],
        },
    )
    cases, skipped = read("image_paragraphs", tmp_path)
    assert values(cases["paragraph-0"], tmp_path) == {
        "answer": "A large building. It is red.",
        "image": "VG_100K_2/2356347.jpg",
    }
    assert skipped == {"paragraph-2": "it has no 'paragraph'"}
    assert list(read("image_paragraphs", tmp_path, "validation")[0]) == ["paragraph-1"]


@pytest.mark.parametrize(("name", "edition"), [("vqa2", "v2_"), ("okvqa", "")])
def test_questions_about_coco(tmp_path, name, edition):
    def answer(text):
        return {"answer": text, "answer_confidence": "yes", "answer_id": 1, "raw_answer": text}

    put(
        tmp_path,
        {
            f"{edition}OpenEnded_mscoco_train2014_questions.json": {
                "task_type": "Open-Ended",
                "data_type": "mscoco",
                "questions": [
                    {"image_id": 458752, "question": "What is this?", "question_id": 458752000},
                    {"image_id": 458752, "question_id": 458752001},
                ],
            },
            f"{edition}mscoco_train2014_annotations.json": {
                "annotations": [
                    {
                        "question_type": "what is this",
                        "answers": [answer("net"), answer("netting"), answer("net")],
                        "image_id": 458752,
                        "answer_type": "other",
                        "question_id": 458752000,
                    },
                    {"answers": [answer("x")], "image_id": 458752, "question_id": 458752001},
                    {"answers": [], "image_id": 458752, "question_id": 458752000},
                    {"answers": [answer("x")], "image_id": 1, "question_id": 5},
                ]
            },
        },
    )
    cases, skipped = read(name, tmp_path)
    assert values(cases["answer-0"], tmp_path) == {
        "question": "What is this?",
        "answer": "net",
        "image": "train2014/COCO_train2014_000000458752.jpg",
    }
    assert skipped == {
        "answer-1": "it has no 'question'",
        "answer-2": "it has no answer",
        "answer-3": "there is no question 5",
    }


def test_vizwiz(tmp_path):
    answers = [
        {"answer_confidence": "yes", "answer": "basil leaves"},
        {"answer_confidence": "yes", "answer": "basil"},
        {"answer_confidence": "no", "answer": "basil"},
    ]
    put(
        tmp_path,
        {
            "Annotations/train.json": [
                {
                    "image": "VizWiz_train_00000000.jpg",
                    "question": "What's the name of this product?",
                    "answers": answers,
                    "answer_type": "other",
                    "answerable": 1,
                },
                {"image": None, "question": "What?", "answers": answers},
            ]
        },
    )
    cases, skipped = read("vizwiz", tmp_path)
    assert values(cases["question-0"], tmp_path) == {
        "question": "What's the name of this product?",
        "answer": "basil",
        "image": "train/VizWiz_train_00000000.jpg",
    }
    assert list(skipped) == ["question-1"]


def test_science_qa(tmp_path):
    problem = {
        "question": "Which of these states is farthest north?",
        "choices": ["West Virginia", "Louisiana"],
        "answer": 0,
        "hint": "",
        "image": "image.png",
        "task": "closed choice",
        "solution": "To find the answer, look at the compass.\nWest Virginia is north.",
        "split": "train",
    }
    put(
        tmp_path,
        {
            "problems.json": {
                "1": problem,
                "2": problem | {"image": None},
                "3": problem | {"answer": 7},
                "4": problem | {"hint": "A passage.", "solution": ""},
                "../6": problem,
                "7": problem | {"choices": "yes or no"},
            },
            "pid_splits.json": {"train": [*"12345", "../6", "7"], "val": [], "test": []},
        },
    )
    cases, skipped = read("science_qa", tmp_path)
    assert values(cases["1"], tmp_path) == {
        "question": "Which of these states is farthest north?",
        "options": "West Virginia, Louisiana",
        "answer": "To find the answer, look at the compass. West Virginia is north. So the answer "
        "is West Virginia.",
        "image": "images/train/1/image.png",
    }
    assert cases["1"].task.parse(cases["1"].values["answer"]) == "West Virginia"
    assert cases["4"].values["context"] == "A passage."
    assert cases["4"].values["answer"] == "West Virginia"
    assert skipped == {
        "2": "it has no image",
        "3": "its answer 7 is none of 2 choices",
        "5": "it is not a JSON object",
        "../6": "'../6/image.png' is not a file name",
        "7": "its 'choices' is not a list",
    }


def test_instruct_pix2pix(tmp_path):
    prompt = {"caption": "a cat", "edit": "make it a dog", "output": "a dog", "url": "x"}
    put(
        tmp_path,
        {
            "seeds.json": [["0000000", ["1", "22"]], ["0000001", ["3"]], "?", ["../up", ["1"]]],
            "0000000/prompt.json": prompt,
            "0000001/prompt.json": "{",
        },
    )
    cases, skipped = read("instruct_pix2pix", tmp_path)
    assert list(cases) == ["0000000/1", "0000000/22"]
    assert values(cases["0000000/22"], tmp_path) == {
        "instruction": "make it a dog",
        "image": "0000000/22_0.jpg",
        "answer": "0000000/22_1.jpg",
    }
    assert list(skipped) == ["0000001/3", "seeds.json:2", "../up/1"]


@pytest.mark.parametrize("name", ["segmentation", "depth", "hed", "openpose", "normals"])
def test_given_maps(tmp_path, name):
    line = {"source": "source/0.png", "target": "target/0.png", "prompt": "a pale circle"}
    bad = json.dumps(line | {"source": "/etc/passwd"})
    put(tmp_path, {"prompt.json": f"{json.dumps(line)}\n{bad}\nno json\n"})
    cases, skipped = read(name, tmp_path)
    case = cases["prompt.json:1"]
    assert case.task.name == name
    assert values(case, tmp_path) == {
        "caption": "a pale circle",
        "image": "source/0.png",
        "answer": "target/0.png",
    }
    assert case.values["image"].over == case.values["answer"]
    assert list(skipped) == ["prompt.json:2", "prompt.json:3"]


def test_all_maps_of_a_picture_are_in_one_split(tmp_path):
    lines = [
        json.dumps({"source": f"source/{n}.png", "target": f"target/{n // 3}.png", "prompt": "a"})
        for n in range(156)
    ]
    put(tmp_path, {"prompt.json": "\n".join(lines)})
    targets = {}
    for split in ("train", "validation"):
        cases, _ = read("depth", tmp_path, split)
        targets[split] = [values(case, tmp_path)["answer"] for case in cases.values()]
    assert targets["validation"] == ["target/49.png"] * 3
    assert len(targets["train"]) == 153
    assert "target/49.png" not in targets["train"]


@pytest.mark.parametrize("name", READERS)
def test_a_missing_data_set_raises_user_error(tmp_path, name):
    with pytest.raises(UserError, match=str(tmp_path)):
        list(READERS[name](epath.Path(tmp_path), "train"))


def test_boxes_are_text_and_back():
    boxes = [grounded.Box("red circle", 8, 72, 56, 120), grounded.Box("ring", 0, 0, 255, 9)]
    text = grounded.write_boxes(boxes)
    assert text == "red circle at (8, 72) -> (56, 120), ring at (0, 0) -> (255, 9)"
    assert grounded.parse_boxes(text) == boxes
    assert grounded.Box.of("red circle:8,72,56,120") == boxes[0]
    assert grounded.overlap(boxes[0], boxes[0]) == 1
    assert grounded.overlap(boxes[0], boxes[1]) == 0
    half = grounded.Box("", 8, 72, 56, 96)
    assert grounded.overlap(boxes[0], half) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "text", ["circle", "circle:1,2,3", "circle:9,9,5,12", ":1,2,3,4", "a:0,0,9,256"]
)
def test_malformed_boxes_raise_user_error(text):
    with pytest.raises(UserError, match="is not a box"):
        grounded.Box.of(text)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_their_pictures(tmp_path, orientation):
    """A red field in the pixels of the file, as tools that draw boxes measure it."""
    picture = PIL.Image.new("RGB", (96, 64), (0, 0, 90))
    picture.paste((255, 0, 0), (24, 8, 56, 24))
    exif = PIL.Image.Exif()
    exif[0x112] = orientation
    for split in ("train2017", "train"):
        (tmp_path / split).mkdir()
        picture.save(tmp_path / split / "1.jpg", exif=exif, quality=95)
    images = [{"id": 1, "file_name": "1.jpg", "width": 96, "height": 64}]
    thing = {"id": 0, "image_id": 1, "category_id": 0, "iscrowd": 0, "bbox": [24, 8, 32, 16]}
    lines = "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\n1,/m/1,0.25,0.58333,0.125,0.375,0\n"
    put(
        tmp_path,
        {
            "annotations/captions_train2017.json": {"images": images, "annotations": []},
            "annotations/instances_train2017.json": {
                "images": images,
                "annotations": [thing],
                "categories": [{"id": 0, "name": "field"}],
            },
            "class-descriptions-boxable.csv": "/m/1,Field\n",
            "oidv6-train-annotations-bbox.csv": lines,
        },
    )
    for name in ("coco_boxes", "open_images_boxes"):
        cases, skipped = read(name, tmp_path)
        assert not skipped
        (case,) = cases.values()
        (box,) = grounded.parse_boxes(case.values["boxes"])
        red = load_picture(case.values["answer"], grounded.GRID)[..., 0] > 128
        rows, columns = np.nonzero(red)
        seen = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        np.testing.assert_allclose((box.left, box.top, box.right, box.bottom), seen, atol=4)


def test_boxes_measured_on_the_picture_as_it_is_shown(tmp_path):
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    PIL.Image.new("RGB", (96, 64)).save(tmp_path / "1.jpg", exif=exif)
    record = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 64, "height": 96}],
        "annotations": [{"image_id": 1, "category_id": 1, "bbox": [0, 16, 32, 32]}],
        "categories": [{"id": 1, "name": "field"}],
    }
    put(tmp_path, {"zhiyuan_objv2_train.json": record})
    (case,) = read("objects365_boxes", tmp_path)[0].values()
    assert case.values["boxes"] == "field at (0, 0) -> (128, 128)"


def test_odd_ids_captions_and_names_of_coco(tmp_path):
    images = [
        {"id": 0, "file_name": "a.jpg", "license": None},
        {"id": "7", "file_name": "b.jpg"},
        {"id": 8},
        {"id": [9], "file_name": "c.jpg"},
        "no object",
    ]
    annotations = [
        {"id": 0, "image_id": 0, "caption": "zero"},
        {"id": 0, "image_id": 0, "caption": "again"},
        {"id": 1, "image_id": 7.0, "caption": "seven"},
        {"id": 2, "image_id": 0, "caption": None},
        {"id": 3, "image_id": [0], "caption": "x"},
        {"id": 4, "image_id": 8, "caption": "x"},
        {"id": None, "image_id": 0, "caption": "a\u2028b"},
        {"id": 5, "image_id": 0, "caption": "half \ud800"},
        {"id": 6, "image_id": "y" * 10**6, "caption": "x"},
    ]
    put(
        tmp_path,
        {
            "annotations/captions_train2017.json": {"images": images, "annotations": annotations},
            "annotations/instances_train2017.json": {
                "images": images,
                "annotations": [{"image_id": 0, "category_id": 1, "bbox": [0, 0, 9, 9]}],
                "categories": [{"id": 1}, {"name": "lost"}],
            },
        },
    )
    cases, skipped = read("coco_captions", tmp_path)
    assert {key: case.values["answer"] for key, case in cases.items()} == {
        "caption-0": "zero",
        "caption-0#2": "again",
        "caption-1": "seven",
        "caption-at-6": "a b",
    }
    assert cases["caption-0"].licence == "unknown"
    assert skipped["caption-2"] == "its 'caption' is not a text"
    assert skipped["caption-3"] == "its 'image_id' is not an id: [0]"
    assert skipped["caption-4"] == "it has no 'file_name'"
    assert "half a surrogate pair" in skipped["caption-5"]
    assert len(skipped["caption-6"]) < 100
    assert not read("coco_boxes", tmp_path)[0]


@pytest.mark.parametrize(
    ("answers", "wanted"),
    [
        (["two", "two", "one"], "two"),
        ([{"answer": "two"}, "two", {"answer": None}, None, ""], "two"),
        (None, None),
        ([], None),
        ([{"raw_answer": "two"}], None),
        ("two", "two"),
        ({"answer": "two"}, "two"),
        ([2, {"answer": 2}, "3", float("nan"), True], "2"),
    ],
)
def test_answers_of_every_form(tmp_path, answers, wanted):
    record = {"image": "a.jpg", "question": "How many?", "answers": answers}
    put(tmp_path, {"Annotations/train.json": [record]})
    cases, skipped = read("vizwiz", tmp_path)
    assert [case.values["answer"] for case in cases.values()] == ([wanted] if wanted else [])
    assert list(skipped.values()) == ([] if wanted else ["it has no answer"])


@pytest.mark.parametrize("odd", list("\u2028\u2029\x85\x0c\x1c\x1e"))
def test_lines_end_at_line_ends_only(tmp_path, odd):
    records = [{"source": "s.png", "target": "t.png", "prompt": f"a{odd}{n}"} for n in range(3)]
    text = "\r\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "prompt.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    put(tmp_path, {"results_20130124.token": f"1.jpg#0\ta red{odd}fox\n1.jpg#1\ta fox\n"})
    cases, skipped = read("segmentation", tmp_path)
    assert [case.values["caption"] for case in cases.values()] == ["a 0", "a 1", "a 2"]
    assert not skipped
    cases, skipped = read("flickr30k", tmp_path)
    assert [case.values["answer"] for case in cases.values()] == ["a red fox", "a fox"]
    assert not skipped


def test_lines_of_another_encoding_are_skipped_one_by_one(tmp_path):
    (tmp_path / "results_20130124.token").write_bytes(b"1.jpg#0\tcaf\xe9\n1.jpg#1\ta fox\n")
    cases, skipped = read("flickr30k", tmp_path)
    assert [case.values["answer"] for case in cases.values()] == ["a fox"]
    assert "is not UTF-8" in skipped["results_20130124.token:1"]
