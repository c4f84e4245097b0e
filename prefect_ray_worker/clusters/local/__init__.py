"""The local Ray: a cluster on this machine that all workers of one Prefect home share.

* `source`: offers the local Ray to runs
* `cluster`: finds, starts and stops it
* `state`: reads and writes the files that the workers share
* `launch`: prepares and runs `ray start`
* `processes`: finds the processes of the local Ray and ends them
"""
