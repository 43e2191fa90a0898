"""Operations on the weights of trained models: merge, prune, shrink and upcycle."""
