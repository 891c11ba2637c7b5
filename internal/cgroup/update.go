package cgroup

import (
	"encoding/json"

	"berth"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// usualPeriod is the kernel's, in microseconds.
const usualPeriod = 100000

// UpdateJSON returns what "runc update -r -" and "crun update -r -" read: the
// runtime spec's LinuxResources. Memory, processor time and pids are given as
// they shall be, no limit too; shares, processors, nodes, the reservation and
// the weight, of which the runtimes have no word for "none", only if they are
// set, and stay as they are otherwise.
//
// runc writes memory and swap in the order that the kernel takes, raised or
// lowered. Neither runtime looks whether more is used than the new limit: v1
// refuses that (EBUSY, and nothing has changed), v2 ends processes until the
// rest fits. Rates of devices are not in it: runc 1.1 leaves those of the start
// and writes them again with every update, so [Group.Throttle] comes after it.
func UpdateJSON(l berth.Limits, m Mode) ([]byte, error) {
	if err := Check(l, m); err != nil {
		return nil, err
	}
	var r specs.LinuxResources
	if m.Has("memory") {
		r.Memory = memoryResources(l, m)
	}
	if m.Has("cpu") || m.Has("cpuset") {
		r.CPU = cpuResources(l, m)
	}
	if m.Has("pids") {
		r.Pids = &specs.LinuxPids{Limit: -1}
		if l.Pids > 0 {
			r.Pids.Limit = l.Pids
		}
	}
	if l.BlkioWeight != 0 {
		r.BlockIO = &specs.LinuxBlockIO{Weight: &l.BlkioWeight}
	}
	return json.Marshal(r)
}

func memoryResources(l berth.Limits, m Mode) *specs.LinuxMemory {
	limit, swap := l.Memory, l.MemorySwap
	switch {
	case limit == 0:
		limit, swap = -1, -1
	case swap == 0:
		swap = 2 * limit
	}
	r := &specs.LinuxMemory{Limit: &limit}
	if l.MemoryReservation != 0 {
		r.Reservation = &l.MemoryReservation
	}
	if m.Swap {
		// Without a limit too: crun 1.8 leaves that of swap where it was.
		r.Swap = &swap
	}
	return r
}

func cpuResources(l berth.Limits, m Mode) *specs.LinuxCPU {
	r := &specs.LinuxCPU{Cpus: l.CPUs, Mems: l.Mems}
	if !m.Has("cpu") {
		return r
	}
	if l.CPUShares != 0 {
		shares := uint64(l.CPUShares)
		r.Shares = &shares
	}
	// Both, always: crun 1.8 takes "no quota" from a period alone, and ignores a
	// quota of -1 without one.
	quota, period := l.CPUQuota, uint64(l.CPUPeriod)
	if period == 0 {
		period = usualPeriod
	}
	if l.NanoCPUs != 0 {
		quota = l.NanoCPUs / (1e9 / usualPeriod)
	}
	if quota <= 0 {
		quota = -1
	}
	r.Quota, r.Period = &quota, &period
	return r
}
