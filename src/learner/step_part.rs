//! The parts that the training thread's time is told by.

/// A part of a training step, or of what a run does between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepPart {
    /// There is no batch yet.
    WaitForData,
    /// The batch becomes a tensor.
    CopyIn,
    /// A device is told all of its step.
    Launch,
    /// A device computes it.
    Device,
    /// Images to embeddings.
    Forward,
    /// Embeddings to the loss and its gradients.
    Loss,
    /// Every other gradient.
    Backward,
    /// The weights move; in a run also what follows them.
    Optimizer,
    /// The teacher and the objective's queue, where they are timed by themselves.
    Follow,
    /// What is noted of a step: metrics, probe, diagnostics.
    Measure,
    /// A checkpoint is copied, or waited for.
    Checkpoint,
    /// kNN accuracy.
    Evaluation,
}

impl StepPart {
    /// As summaries, traces, Prometheus and benchmarks have it.
    pub fn name(self) -> &'static str {
        match self {
            StepPart::WaitForData => "wait for data",
            StepPart::CopyIn => "copy in",
            StepPart::Launch => "launch",
            StepPart::Device => "device",
            StepPart::Forward => "forward",
            StepPart::Loss => "loss",
            StepPart::Backward => "backward",
            StepPart::Optimizer => "optimizer",
            StepPart::Follow => "follow",
            StepPart::Measure => "measure",
            StepPart::Checkpoint => "checkpoint",
            StepPart::Evaluation => "evaluation",
        }
    }
}
