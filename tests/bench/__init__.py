"""`make bench`: Dcmgate beside the programs it is compared with, in alternating rounds of one run on one corpus."""
