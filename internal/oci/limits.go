package oci

import (
	"fmt"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"berth"
)

const (
	cpuPeriod = 100_000 // µs; the kernel's default
	// Docker's least: below it a container cannot even start.
	minMemory = 6 << 20
)

// resources are the limits of the cgroup, without its devices.
func resources(c berth.Container, h Host) (*specs.LinuxResources, error) {
	memory, err := memory(c.Limits, h)
	if err != nil {
		return nil, err
	}
	cpu, err := cpu(c.Limits, h)
	if err != nil {
		return nil, err
	}
	disk, err := blockIO(c.Limits, h)
	if err != nil {
		return nil, err
	}
	r := &specs.LinuxResources{Memory: memory, CPU: cpu, BlockIO: disk}
	if n := c.Limits.Pids; n > 0 {
		r.Pids = &specs.LinuxPids{Limit: n}
	}
	return r, nil
}

// memory is nil without a limit. The specification counts swap as Docker does:
// memory included.
func memory(l berth.Limits, h Host) (*specs.LinuxMemory, error) {
	size := func(n int64) string { return strconv.FormatInt(n, 10) }
	switch {
	case l.Memory != 0 && l.Memory < minMemory:
		return nil, invalid("memory "+size(l.Memory), "the least is 6 MiB")
	case l.MemoryReservation != 0 && l.MemoryReservation < minMemory:
		return nil, invalid("memory reservation "+size(l.MemoryReservation), "the least is 6 MiB")
	case l.Memory > 0 && l.MemoryReservation > l.Memory:
		return nil, invalid("memory reservation "+size(l.MemoryReservation), "it is more than the memory, %d", l.Memory)
	case l.MemorySwap < -1:
		return nil, invalid("memory with swap "+size(l.MemorySwap), "-1 is no limit")
	case l.MemorySwap > 0 && l.Memory == 0:
		return nil, invalid("memory with swap "+size(l.MemorySwap), "set the memory too")
	case l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return nil, invalid("memory with swap "+size(l.MemorySwap), "it is less than the memory, %d", l.Memory)
	case l.MemorySwap > 0 && !h.SwapLimit:
		return nil, fmt.Errorf("memory with swap %d: boot with swapaccount=1: %w", l.MemorySwap, berth.ErrUnsupported)
	}
	if l.Memory == 0 && l.MemoryReservation == 0 {
		return nil, nil
	}
	m := &specs.LinuxMemory{}
	if l.Memory > 0 {
		m.Limit = &l.Memory
		swap := l.MemorySwap
		if swap == 0 {
			swap = doubled(l.Memory)
		}
		if h.SwapLimit {
			m.Swap = &swap
		}
	}
	if l.MemoryReservation > 0 {
		m.Reservation = &l.MemoryReservation
	}
	return m, nil
}

// doubled is twice n, or as much as there can be.
func doubled(n int64) int64 {
	if twice := n * 2; twice > n {
		return twice
	}
	return -1
}

func cpu(l berth.Limits, h Host) (*specs.LinuxCPU, error) {
	if err := checkCPU(l, h); err != nil {
		return nil, err
	}
	if l.NanoCPUs == 0 && l.CPUShares == 0 && l.CPUPeriod == 0 && l.CPUQuota == 0 && l.CPUs == "" && l.Mems == "" {
		return nil, nil
	}
	c := &specs.LinuxCPU{Cpus: l.CPUs, Mems: l.Mems}
	if l.NanoCPUs > 0 {
		// Whole processors apart, so that no number of them overflows.
		quota := l.NanoCPUs/1e9*cpuPeriod + l.NanoCPUs%1e9*cpuPeriod/1e9
		l.CPUPeriod, l.CPUQuota = cpuPeriod, quota
	}
	if l.CPUShares > 0 {
		shares := uint64(l.CPUShares)
		c.Shares = &shares
	}
	if l.CPUPeriod > 0 {
		period := uint64(l.CPUPeriod)
		c.Period = &period
	}
	if l.CPUQuota != 0 {
		c.Quota = &l.CPUQuota
	}
	return c, nil
}

func checkCPU(l berth.Limits, h Host) error {
	cpus := strconv.FormatFloat(float64(l.NanoCPUs)/1e9, 'f', -1, 64)
	switch {
	case l.NanoCPUs != 0 && (l.CPUPeriod != 0 || l.CPUQuota != 0):
		return invalid("cpus "+cpus, "a period and a quota say the same in another way")
	// The kernel's least quota is 1 ms.
	case l.NanoCPUs != 0 && l.NanoCPUs < 1e7:
		return invalid("cpus "+cpus, "the least is 0.01")
	case h.CPUs > 0 && l.NanoCPUs/1e9 >= int64(h.CPUs) && l.NanoCPUs != int64(h.CPUs)*1e9:
		return invalid("cpus "+cpus, "this host has %d", h.CPUs)
	case l.CPUShares < 0 || l.CPUShares == 1 || l.CPUShares > 262144:
		return invalid("cpu shares", "%d is not between 2 and 262144", l.CPUShares)
	case l.CPUPeriod != 0 && (l.CPUPeriod < 1000 || l.CPUPeriod > 1_000_000):
		return invalid("cpu period", "%d µs is not between 1000 and 1000000", l.CPUPeriod)
	case l.CPUQuota != 0 && l.CPUQuota != -1 && l.CPUQuota < 1000:
		return invalid("cpu quota", "%d µs is less than 1000", l.CPUQuota)
	}
	if err := checkList("processors", l.CPUs); err != nil {
		return err
	}
	return checkList("memory nodes", l.Mems)
}

// checkList reads a list as cpuset(7) has it: 0-2,4.
func checkList(what, list string) error {
	if list == "" {
		return nil
	}
	for part := range strings.SplitSeq(list, ",") {
		first, last, isRange := strings.Cut(part, "-")
		from, err := strconv.ParseUint(first, 10, 16)
		to := from
		if err == nil && isRange {
			to, err = strconv.ParseUint(last, 10, 16)
		}
		if err != nil || to < from {
			return invalid(what, "%q is not a list like 0-2,4", list)
		}
	}
	return nil
}

func blockIO(l berth.Limits, h Host) (*specs.LinuxBlockIO, error) {
	if l.BlkioWeight != 0 && (l.BlkioWeight < 10 || l.BlkioWeight > 1000) {
		return nil, invalid("blkio weight", "%d is not between 10 and 1000", l.BlkioWeight)
	}
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
		switch {
		case !ok || n.Type != "b":
			return nil, invalid("rate of "+t.Device, "it is no disk of this host")
		case t.Rate == 0:
			return nil, invalid("rate of "+t.Device, "zero bytes a second")
		}
		d := specs.LinuxThrottleDevice{Rate: t.Rate}
		d.Major, d.Minor = n.Major, n.Minor
		devices = append(devices, d)
	}
	return devices, nil
}
