"""Models: the one to start from and the fine-tuned checkpoints, made by the package `training` in processes of their own."""
