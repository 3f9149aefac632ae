"""What a run's tags, metrics, params and artifacts are called in MLflow: each name is written here, and nowhere else."""

# Tags of a training: what it started from.
ENGINE_TAG = "engine"
COMMIT_TAG, DIRTY_TAG = "git.commit", "git.dirty"
OMITTED_TAG = "git.omitted"  # uncommitted files that are not in the record, with the reasons
INCOMPLETE_TAG = "git.incomplete"  # those of them that a rerun needs
ROOT_TAG = "git.root"  # the first commit of the repository, by which its runs are told from others'
REMOTE_TAG = "git.remote"  # the address of the repository's remote, without credentials
BASE_TAG = "git.base"  # the newest commit of its history that the remote has; the recorded bundle builds on it
UNBUNDLED_TAG = "git.unbundled"  # why commits that the remote does not have are not in the record
RECORD_TAG = "record.sha256"  # over all that lies in record/
CODE_TAG, CSV_TAG, TABLE_TAG = "code.sha256", "csv.sha256", "table.sha256"
EXPERIMENT_TAG, BASELINE_TAG, GRID_TAG = "dvc.exp", "dvc.baseline", "dvc.grid"

# Tags of a training: what came of it.
DIGEST_TAG = "state_dict.sha256"  # of the state that the model has
CHANGED_TAG = "changed"  # the files that changed while the training ran
PROCESSES_TAG, HOSTS_TAG, SHARDS_TAG = "processes", "hosts", "shards"
COMPILE_SECONDS_TAG = "compile_seconds"
FAILURE_TAG = "failure"
EVALUATED_CODE_TAG = "evaluated.code.sha256"

SKIPPED_TAG = "truefit.skipped"  # what the store refused, such as a value that is too long
OMITTED_COLUMNS_TAG = "dataset.columns.omitted"  # how many columns do not fit into what MLflow takes of a dataset

# Tags by which a run is found, or told from others.
KEY_TAG = "truefit.run"  # of its journal
GRID_KEY_TAG = "truefit.grid"  # of the run that is the parent of a grid's
RERUN_TAG, RERUN_KEY_TAG = "rerun.of", "rerun.key"
RERUN_VERDICT_TAG, RERUN_BY_TAG = "rerun.verdict", "rerun.by"  # the former also with a user's name behind it

# Tags that MLflow itself knows.
NOTE_TAG = "mlflow.note.content"  # what it shows as the description, in markdown
PARENT_TAG = "mlflow.parentRunId"
USER_TAG = "mlflow.user"
SOURCE_COMMIT_TAG = "mlflow.source.git.commit"
DATASET_TAG = "mlflow.data.context"

# Metrics of an epoch are the fields of training's Epoch; these two are asked for here too.
VALIDATION_LOSS, LEARNING_RATE = "validation_loss", "learning_rate"

# Metrics of the machine begin so, by which MLflow shows them on a page of their own.
SYSTEM_PREFIX = "system/"

# Metrics of the test rows: the prefix of each, and the mean squared error over that of least squares, less 1.
TEST_PREFIX = "test_"
EXCESS_MSE = "excess_mse"

# Set by `truefit rerun` for the stages below it: the id of the experiment that their runs go to, whatever its name is by now.
RERUN_EXPERIMENT = "TRUEFIT_RERUN_EXPERIMENT"

# Folders of artifacts, and what lies in them.
RECORD, STATE_DICT, FIGURES, MODEL, RERUN = "record", "state_dict", "figures", "model", "rerun"
RECORDED_FILES = ("params.yaml", "dvc.yaml", "dvc.lock")  # of the project, as they are
RECORDED_PARAMS, RECORDED_PIPELINE, RECORDED_LOCK = (f"{RECORD}/{name}" for name in RECORDED_FILES)
RECORDED_PATCH, RECORDED_ENVIRONMENT = f"{RECORD}/diff.patch", f"{RECORD}/environment.json"
RECORDED_BUNDLE = f"{RECORD}/commits.bundle"  # those that the remote does not have
RECORDED_SUBMODULES = f"{RECORD}/submodules.json"  # the commit of each that is checked out, by its path from the root
STATES = ("best", "final")  # best.pt and final.pt
MODEL_DESCRIPTION = f"{STATE_DICT}/model.json"


def state_path(kind: str) -> str:
    """Return the artifact that holds a state_dict, one of STATES.

    >>> state_path("best")
    'state_dict/best.pt'
    """
    return f"{STATE_DICT}/{kind}.pt"


def state_tag(kind: str) -> str:
    """Return the tag with the digest of that artifact's bytes.

    >>> state_tag("best")
    'best.pt.sha256'
    """
    return f"{kind}.pt.sha256"


def is_test_metric(name: str) -> bool:
    """Say whether a metric is one of the test rows.

    >>> [is_test_metric(name) for name in ("test_mse", "excess_mse", "train_loss")]
    [True, True, False]
    """
    return name.startswith(TEST_PREFIX) or name == EXCESS_MSE
