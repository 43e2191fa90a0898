"""Mixture of Experts: who goes where (gate), how tokens travel (dispatch), what is computed
(experts)."""
