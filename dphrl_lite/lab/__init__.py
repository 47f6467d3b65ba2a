"""The method where everything can be computed exactly: toy distributions, enumerable worlds, estimators, bandits."""
