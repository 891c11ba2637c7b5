package oci

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

const cpuPeriod = 100_000 // µs; the kernel's default

// resources are the limits of the cgroup, without its devices. That the host
// can keep them was seen by cgroup.Check; what slips by it fails in the runtime.
func resources(c berth.Container, h Host) (*specs.LinuxResources, error) {
	disk, err := blockIO(c.Limits, h)
	if err != nil {
		return nil, err
	}
	r := &specs.LinuxResources{Memory: memory(c.Limits, h), CPU: cpu(c.Limits), BlockIO: disk}
	if n := c.Limits.Pids; n > 0 {
		r.Pids = &specs.LinuxPids{Limit: n}
	}
	return r, nil
}

// memory is nil without a limit. The specification counts swap as Docker does:
// memory included. Where the kernel cannot count it, a default that nobody asked
// for is left out.
func memory(l berth.Limits, h Host) *specs.LinuxMemory {
	if l.Memory == 0 && l.MemoryReservation == 0 && l.MemorySwap == 0 {
		return nil
	}
	m := &specs.LinuxMemory{}
	if l.Memory != 0 {
		m.Limit = &l.Memory
	}
	if l.MemoryReservation != 0 {
		m.Reservation = &l.MemoryReservation
	}
	swap := l.MemorySwap
	if swap == 0 {
		swap = doubled(l.Memory)
	}
	if l.MemorySwap > 0 || h.SwapLimit && l.Memory != 0 {
		m.Swap = &swap
	}
	return m
}

// doubled is twice n, or no limit if that is more than there can be.
func doubled(n int64) int64 {
	if twice := n * 2; twice > n {
		return twice
	}
	return -1
}

func cpu(l berth.Limits) *specs.LinuxCPU {
	if l.NanoCPUs == 0 && l.CPUShares == 0 && l.CPUPeriod == 0 && l.CPUQuota == 0 && l.CPUs == "" && l.Mems == "" {
		return nil
	}
	c := &specs.LinuxCPU{Cpus: l.CPUs, Mems: l.Mems}
	if l.NanoCPUs != 0 {
		// Whole processors apart, so that no number of them overflows.
		l.CPUPeriod, l.CPUQuota = cpuPeriod, l.NanoCPUs/1e9*cpuPeriod+l.NanoCPUs%1e9*cpuPeriod/1e9
	}
	if l.CPUShares != 0 {
		shares := uint64(l.CPUShares)
		c.Shares = &shares
	}
	if l.CPUPeriod != 0 {
		period := uint64(l.CPUPeriod)
		c.Period = &period
	}
	if l.CPUQuota != 0 {
		c.Quota = &l.CPUQuota
	}
	return c
}

func blockIO(l berth.Limits, h Host) (*specs.LinuxBlockIO, error) {
	read, err := throttles(l.DeviceReadBps, h)
	if err != nil {
		return nil, err
	}
	write, err := throttles(l.DeviceWriteBps, h)
	if err != nil {
		return nil, err
	}
	if l.BlkioWeight == 0 && read == nil && write == nil {
		return nil, nil
	}
	b := &specs.LinuxBlockIO{ThrottleReadBpsDevice: read, ThrottleWriteBpsDevice: write}
	if l.BlkioWeight != 0 {
		b.Weight = &l.BlkioWeight
	}
	return b, nil
}

func throttles(list []berth.Throttle, h Host) (devices []specs.LinuxThrottleDevice, err error) {
	for _, t := range list {
		n, ok := h.Devices[t.Device]
		if !ok || n.Type != "b" {
			return nil, invalid("rate of "+t.Device, "it is no disk of this host")
		}
		d := specs.LinuxThrottleDevice{Rate: t.Rate}
		d.Major, d.Minor = n.Major, n.Minor
		devices = append(devices, d)
	}
	return devices, nil
}
