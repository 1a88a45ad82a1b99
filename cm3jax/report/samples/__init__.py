"""What a run's report shows besides its curves, drawn from parameters in training, by learner."""
