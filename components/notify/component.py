"""Notify: says how a run ended; the exit handler."""

from kfp import dsl

from components.image import STEP_IMAGE


@dsl.component(base_image=STEP_IMAGE, install_kfp_package=False)
def notify(url: str, run_id: str, library_version: str, status: dsl.PipelineTaskFinalStatus):
    """Says how the run ended, in its log and, where there is a URL, to a webhook of Slack's form.

    It runs whatever happened and never fails the run: a webhook that does not answer is a line in its log. On a
    cluster it asks Kubeflow's API server which step failed and why. Never cached.

    Args:
        url: where to POST `{"text": ...}`; empty for nowhere.
        run_id: Kubeflow's id of the run.
        library_version: version of `pneumonia` that the pipeline was compiled for.
        status: given by Kubeflow.
    """
    from pneumonia.pipelines.notify import notify
    from pneumonia.pipelines.step import step

    with step("notify", library_version):
        notify(url, status.pipeline_job_resource_name, status.state, status.error_message, run_id)
