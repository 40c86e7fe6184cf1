"""Final answers to requests that were searched before, by the request's content."""

import hashlib
from collections import OrderedDict

from realloc.api.plan_search.v1 import plan_search_pb2 as pb


class Answers:
    """The answers used last. A search is a function of its request, so none grows stale; but
    one that had more time would do better, so the time is part of the content, too."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[bytes, pb.SearchPlanResponse] = OrderedDict()

    def get(self, key: bytes) -> pb.SearchPlanResponse | None:
        """The final answer, marked as one that is not new."""
        found = self._answers.get(key)
        if found is None:
            return None
        self._answers.move_to_end(key)
        again = pb.SearchPlanResponse()
        again.CopyFrom(found)
        again.from_cache = True
        return again

    def put(self, key: bytes, answer: pb.SearchPlanResponse) -> None:
        """Keep a final answer; the one that was not used for the longest time may go."""
        self._answers[key] = answer
        self._answers.move_to_end(key)
        while len(self._answers) > self._most:
            self._answers.popitem(last=False)


def content_key(request: pb.SearchPlanRequest, profile: str) -> bytes:
    """A digest of all that the answer depends on, the text of its profile included."""
    digest = hashlib.sha256(request.SerializeToString(deterministic=True))
    digest.update(profile.encode())
    return digest.digest()
