"""What happened, and why something was refused: the audit, and the explanations behind each `x-error-id`."""
