"""A ledger's database that may be away for a while: what a driver asks of it is asked again until it answers."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from nas_kd.trials.storage import StorageError, storage_errors

WAIT_S = 300.0  # for a database that does not answer
_PAUSE_S = 2.0
_LOGGER = logging.getLogger("nas_kd")


class Database:
    """The methods of a storage, whose errors are sentences without a password; see `storage_errors`.

    Args:
        storage: Of Optuna.
        url: Of the database.
        wait_s: How long to ask again, in seconds; 0 for a reader, who is told at once. A driver that waits is the only
            one that writes to its study, so that what a lost answer leaves open can be looked up.
    """

    def __init__(self, storage: BaseStorage, url: str, *, wait_s: float = 0.0) -> None:
        self._storage = storage
        self._url = url
        self.wait_s = wait_s

    def __getattr__(self, name: str) -> Any:
        method: Callable[..., Any] = getattr(self._storage, name)

        def call(*arguments: Any, **options: Any) -> Any:
            return self._asked(name, lambda: method(*arguments, **options))

        return call

    def create_new_trial(self, study_id: int, template_trial: Any, *, number: int) -> int:
        """As Optuna's. A trial that was made although the answer was lost is not made twice.

        Args:
            study_id: Of the study.
            template_trial: What to store.
            number: That the trial will have.
        """
        again = False

        def make() -> int:
            nonlocal again
            if again:
                with suppress(KeyError):
                    return self._storage.get_trial_id_from_study_id_trial_number(study_id, number)
            again = True
            return self._storage.create_new_trial(study_id, template_trial=template_trial)

        trial_id: int = self._asked("create_new_trial", make)
        return trial_id

    def _asked(self, name: str, call: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + self.wait_s
        again = False
        while True:
            try:
                with storage_errors(self._url):
                    return call()
            except UpdateFinishedTrialError:
                if again and name == "set_trial_state_values":
                    return True  # it was written, and the answer was lost
                raise
            except StorageError as error:
                if time.monotonic() >= deadline:
                    if self.wait_s:
                        raise StorageError(f"{error}; when it is back, the same command goes on") from None
                    raise
                if not again:
                    _LOGGER.warning("%s; it is asked again for %.0f minutes", error, self.wait_s / 60)
                again = True
                time.sleep(_PAUSE_S)
