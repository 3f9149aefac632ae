"""What torch's launcher asks of a place where hosts meet, and what this program answers always."""

from torch.distributed.elastic.rendezvous import RendezvousHandler


class MeetingPlace(RendezvousHandler):
    """All but `next_rendezvous`."""

    def get_backend(self) -> str:
        """Return the name that torch's launcher logs."""
        return "truefit"

    def get_run_id(self) -> str:
        """Return the name of the training, of which a meeting has one alone."""
        return "training"

    @property
    def use_agent_store(self) -> bool:
        """Say that MASTER_ADDR and MASTER_PORT are of a store which exists, so that rank 0 makes none."""
        return True

    def num_nodes_waiting(self) -> int:
        """Return the hosts that come in later: none."""
        return 0

    def is_closed(self) -> bool:
        """Say whether nobody is to come in any more: `next_rendezvous` does."""
        return False

    def set_closed(self) -> None:
        """Do nothing, as `settle` tells the others of an end."""

    def shutdown(self) -> bool:
        """Do nothing, as the store goes with the process."""
        return True
