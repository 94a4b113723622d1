"""What happens at a step that would harm the model: judged before its update, left out or gone back over."""
