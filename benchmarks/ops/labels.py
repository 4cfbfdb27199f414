"""How tables and pictures name the variants, and in which order they show them."""

OURS = "megafold"
LABELS = {
    "megafold": "MegaFold",
    "eager": "eager",
    "compile": "torch.compile",
    "sdpa": "SDPA",
    "flex": "FlexAttention",
    "cuequivariance": "cuEquivariance",
    "trifast": "trifast",
    "triton-megafold": "Triton MegaFold",
}
