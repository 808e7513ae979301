"""A config that does not fit is refused in one sentence; one that does survives a round trip."""

from importlib import resources
from pathlib import Path

import pytest

from cocomix.pipeline.config import RunConfig, load_config
from cocomix.utils.env import fast_precision
from cocomix.utils.errors import CocomixError
from cocomix.utils.files import sha256_of
from cocomix.utils.settings import LEGACY_SEAL, SettingsFile, copy_path

DEMO = Path(str(resources.files("cocomix") / "recipes" / "demo.yaml"))
TINY = DEMO.with_name("tiny.yaml")


def save(config: RunConfig, path: Path) -> None:
    SettingsFile(path).write(config.model_dump(mode="json"))


@pytest.mark.parametrize("name", ["demo", "tiny", "rules"])
def test_shipped_recipes_are_valid(name: str) -> None:
    load_config(DEMO.with_name(f"{name}.yaml"))


def test_saved_config_loads_to_the_same(tmp_path: Path) -> None:
    config = load_config(DEMO, ["sae.k=8", "seeds=[0, 1]"])
    assert config.sae.k == 8 and config.seeds == (0, 1)
    save(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


def test_an_override_changes_only_what_it_names() -> None:
    assert "*student" in DEMO.read_text()  # YAML aliases share one mapping
    config = load_config(DEMO, ["students.ntp.model.width=256"])
    assert config.students["ntp"].model.width == 256
    assert config.students["cocomix"].model.width == config.students["ntp_wide"].model.width == 128


def test_loaded_models_need_no_training_section(tmp_path: Path) -> None:
    config = load_config(DEMO, ["teacher={pretrained: t}", "sae={pretrained: s, layer: 1}", "labels.attribution.k=30"])
    assert config.teacher.train is None and config.sae.train is None


def test_automatic_precision_is_settled_when_the_config_is_loaded() -> None:
    assert "precision: auto" in DEMO.read_text()
    config = load_config(DEMO)
    assert config.students_train.precision == config.labels["attribution"].precision == fast_precision()
    assert load_config(DEMO, ["students_train.precision=fp32"]).students_train.precision == "fp32"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("sae.n_latent=5", ["sae.n_latent", "does not exist", "n_latents"]),
        ("students.cocomix.modell=1", ["students.cocomix.modell", "model"]),
        ("sae.k=4096", ["4096", "larger than n_latents"]),
        ("students.cocomix.concept.concept_layer=4", ["concept_layer 4", "outside the stack", "1 to 3"]),
        ("students.cocomix.concept.concept_layer=0", ["concept_layer"]),
        ("sae.layer=6", ["sae.layer 6", "outside"]),
        ("students.cocomix.labels=nowhere", ["nowhere", "attribution"]),
        ("students.ntp_wide.match_parameters=nobody", ["nobody"]),
        ("labels.attribution.k=17", ["17", "16"]),
        ("students.cocomix.sign=helpful", ["helpful", "do not have"]),
        ("labels.attribution.rule=magic", ["labels.attribution.rule", "magic"]),
        ("baseline=other", ["other", "ntp"]),
        ("students.cocomix.concept.top_k=4000", ["cocomix", "4000", "2048"]),
        ("students.cocomix.concept.mixer=blend", ["students.cocomix.concept", "blend", "interleave"]),
        ("students.cocomix.concept={mixer: every, mixer_options: {evry: 2}}", ["every", "'evry'", "it takes every"]),
        ("students.cocomix.concept={mixer: every, mixer_options: {every: 0}}", ["every", "whole number"]),
        ("students.cocomix.concept.loss_weight=0", ["labels", "loss_weight is 0"]),
        ("students.ntp.objective=ntq", ["students.ntp", "'ntq'", "ntp", "bootstrap"]),
        ("students.ntp.objective=[ntp]", ["students.ntp", "there is no objective", "bootstrap"]),
        ("students.other={model: {width: 8}}", ["students.other.objective", "missing"]),
        ("students.ntp.concept={}", ["students.ntp.concept", "does not exist"]),
        ("teacher.train=null", ["teacher", "pretrained", "train"]),
        ("sae.train=null", ["sae", "pretrained", "train"]),
        ("students_train.precision=fp8", ["students_train.precision", "fp8", "bf16"]),
        ("students.ntp.model.heads=5", ["width 128", "heads 5"]),
        ("students.ntp.model={backbone: llama, width: 12, heads: 4}", ["odd head width"]),
        ("students.cocomix.match_parameters=ntp", ["students.cocomix.match_parameters", "does not exist"]),
        ("seeds=[-1]", ["seeds", "-1"]),
        ("students_train.betas=[2, 3]", ["betas", "between 0 and 1"]),
        ("students_train.learning_rate=.inf", ["learning_rate", "finite"]),
        ("seeds=[0, 0]", ["seeds", "different"]),
        ("seq_len=256=", ["seq_len"]),
        ("sae.k", ["key.path=value"]),
        ("title.x=1", ["title"]),
    ],
)
def test_a_wrong_override_is_one_clear_sentence(override: str, words: list[str]) -> None:
    with pytest.raises(CocomixError) as caught:
        load_config(DEMO, [override])
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message


def test_missing_and_malformed_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(CocomixError, match=r"no config file .*absent\.yaml"):
        load_config(tmp_path / "absent.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1\nb: 2")
    with pytest.raises(CocomixError, match=r"bad\.yaml cannot be read as YAML"):
        load_config(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(CocomixError, match="no mapping"):
        load_config(tmp_path / "list.yaml")
    (tmp_path / "object.yaml").write_text("!!python/object/apply:os.system ['echo hi']")
    with pytest.raises(CocomixError, match="cannot be read as YAML"):
        load_config(tmp_path / "object.yaml")


def test_a_cut_file_is_refused_and_the_missing_keys_are_named(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(load_config(TINY), path)
    sound = path.read_text()
    for spoilt, missing in (
        (
            sound[: sound.index("students_train")],
            "has lost students_train, baseline, evaluation, predictability; put it back, or delete",
        ),
        (
            sound[: sound.index("  sae_windows")],
            "has lost evaluation.sae_windows, evaluation.probe_positions, predictability;",
        ),
        (sound[: sound.index("evaluation:") + 11], "has lost evaluation, predictability;"),
        (sound.replace("  n_latents: 128\n", ""), "has lost sae.n_latents;"),
        ("", "has lost baseline, context, corpus,"),
    ):
        path.write_text(spoilt)
        with pytest.raises(CocomixError, match=rf"config\.yaml {missing}"):
            load_config(path)
    path.write_text(sound.replace("  n_latents: 128\n", ""))
    copy_path(path).unlink()  # as the sentence says, for what was removed on purpose
    assert load_config(path).sae.n_latents == 2048


def test_an_edited_file_is_read_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(load_config(TINY), path)
    sound = path.read_text()
    assert not sound.startswith("#")
    path.write_bytes(b"\xef\xbb\xbf# mine\r\n" + sound.replace("n_latents: 128", "n_latents: 256").encode())
    assert load_config(path).sae.n_latents == 256
    path.write_bytes(sound.replace("\n", "\r\n").encode())
    assert load_config(path) == load_config(TINY)


def test_a_damaged_copy_is_named_with_its_fix(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(load_config(TINY), path)
    copy = copy_path(path)
    sound = copy.read_text()
    for spoilt in ("", "[]", "{}", sound[:-9], sound.replace("128", "129"), '{"settings": 3}'):
        copy.write_text(spoilt)
        with pytest.raises(CocomixError, match=r"\.config\.json is damaged .*; check that config\.yaml .* delete "):
            load_config(path)
    copy.unlink()
    assert load_config(path) == load_config(TINY)


def test_a_file_that_holds_the_settings_keeps_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(load_config(TINY), path)
    text = path.read_text()
    rate = load_config(TINY).students_train.learning_rate
    assert f"learning_rate: {rate}\n" in text
    commented = "# mine\n" + text.replace(f"learning_rate: {rate}\n", f"learning_rate: {rate:e}  # as in the paper\n")
    path.write_text(commented)
    save(load_config(path), path)
    assert path.read_text() == commented
    save(load_config(path, ["sae.k=7"]), path)
    assert "k: 7\n" in path.read_text() and "#" not in path.read_text()


def test_an_edit_made_while_a_command_ran_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(load_config(TINY), path)
    command = SettingsFile(path)
    path.write_text(path.read_text().replace("n_latents: 128", "n_latents: 256"))
    command.write(load_config(TINY, ["sae.k=8"]).model_dump(mode="json"))
    assert load_config(path).sae.n_latents == 256
    assert '"n_latents": 128' in copy_path(path).read_text()


def test_a_file_of_an_earlier_version_has_a_checksum_in_its_first_line(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    save(load_config(TINY), path)
    settings = path.read_text()
    copy_path(path).unlink()
    sealed = f"{LEGACY_SEAL}{sha256_of(settings)}; whoever edits this file deletes this line\n{settings}"
    for spoilt in (sealed.replace("n_latents: 128", "n_latents: 129"), sealed[: sealed.index("students_train")]):
        path.write_text(spoilt)
        with pytest.raises(CocomixError, match=r"was changed since an earlier version .* delete its first line"):
            load_config(path)
    path.write_text(sealed)
    config = load_config(path)
    assert config == load_config(TINY)
    save(config, path)
    assert path.read_text() == settings and copy_path(path).exists()
