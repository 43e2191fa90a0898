"""The parts of cleaning, in the order in which a pair passes them; `ds_seq.data.clean` uses them.

* `options`: what cleaning does with a corpus, as plain values.
* `blocks`: reads pairs and their scores, block by block.
* `repairs`, `filters`, `languages`: change a pair, or drop it.
* `block`: cleans a block; what worker processes run.
* `journal`: what is finished, on disk, so that a killed command can be continued.
* `duplicates`: which pairs repeat others, in bounded memory.
* `report`: counts and examples of what was dropped.
* `build`: options from an experiment.
"""
