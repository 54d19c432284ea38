"""What is learned from scored pictures: objectives, the learner, online rounds, and the adapter it makes."""
