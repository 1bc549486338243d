"""Videos of visitors that are finished through the queue."""

from __future__ import annotations

from radial.video.encoding import Encoding
from radial.video.finishing.sources import Sources
from radial_app.jobs.finishing import finishing_of
from radial_app.jobs.job import Job, Output
from radial_app.server.finishing.bounds import IN_THE_QUEUE, FinishRequest, check_work, read_order
from radial_app.server.service import Service


def finish_video(service: Service, id_: str, wanted: FinishRequest) -> Job:
    """Put a job into the queue that finishes a video, with others that are joined to it.

    Raises:
        RequestError: there is no such video, or it takes too much.
    """
    job, file = service.get(id_), service.file(id_, wanted.index)
    clips, what = (
        [file, *(service.file(one) for one in wanted.join)],
        read_order(wanted, service.inputs, service.store.folder),
    )
    check_work(Sources.look(clips), what, IN_THE_QUEUE)
    name = f"{file.stem}-finished".replace("{", "{{").replace("}", "}}")
    output = Output(name=name, encoding=Encoding(metadata=job.output.encoding.metadata))
    request = job.single(wanted.index)
    return service.add_jobs([Job(id="", request=request, output=output, finish=finishing_of(clips, what))])[0]
