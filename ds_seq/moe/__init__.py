"""Mixture of Experts: who goes where (router), how tokens travel (dispatch), what is computed
(experts)."""
