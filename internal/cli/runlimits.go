package cli

import (
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"berth"
)

// limitFlags are the flags of "run" and "update" that limit a container. What
// is not typed is left as it is.
type limitFlags struct {
	memory, swap, reservation string
	cpus, cpuset, mems        string
	shares, period, quota     int64
	pids                      int64
	weight                    uint16
	typed                     func(flag string) bool
}

// limitBounds are those of the kernel.
const (
	leastMemory       = 6 << 20 // Docker's: less does not start a process
	leastShares       = 2
	mostShares        = 262144
	leastPeriod       = 1000 // µs
	mostPeriod        = 1000000
	leastWeight       = 10
	mostWeight        = 1000
	usualPeriod       = 100000
	unlimited         = -1
	billionth   int64 = 1e9
)

func (l *limitFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	l.typed = f.Changed
	f.StringVarP(&l.memory, "memory", "m", "", "most memory, a `size` as 512m")
	f.StringVar(&l.swap, "memory-swap", "", "most memory and swap together, a `size` (default: twice --memory; -1: no limit of swap)")
	f.StringVar(&l.reservation, "memory-reservation", "", "memory that is left to it when memory is short, a `size`")
	f.StringVar(&l.cpus, "cpus", "", "`number` of processors, as 1.5")
	f.Int64VarP(&l.shares, "cpu-shares", "c", 0, "`weight` among those who want the processors (usual: 1024)")
	f.Int64Var(&l.period, "cpu-period", 0, "`microseconds` of which --cpu-quota is a part (usual: 100000)")
	f.Int64Var(&l.quota, "cpu-quota", 0, "`microseconds` of each period")
	f.StringVar(&l.cpuset, "cpuset-cpus", "", "the processors to run on, a `list` as 0-2,4")
	f.StringVar(&l.mems, "cpuset-mems", "", "the memory nodes to use, a `list`")
	f.Int64Var(&l.pids, "pids-limit", 0, "most processes and threads, a `number` (-1: no limit)")
	f.Uint16Var(&l.weight, "blkio-weight", 0, "`weight` among those who want a disk, 10 to 1000")
	for _, name := range []string{
		"memory", "memory-swap", "memory-reservation", "cpus", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems",
		"pids-limit", "blkio-weight",
	} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

// apply puts what was typed into limits, and checks the whole.
func (l *limitFlags) apply(to *berth.Limits) error {
	err := errors.Join(
		l.size("memory", l.memory, &to.Memory), l.size("memory-swap", l.swap, &to.MemorySwap),
		l.size("memory-reservation", l.reservation, &to.MemoryReservation), l.lists(to),
	)
	if err != nil {
		return err
	}
	if l.typed("cpus") {
		if to.NanoCPUs, err = parseCPUs(l.cpus); err != nil {
			return fmt.Errorf("--cpus %w", err)
		}
	}
	for flag, number := range map[string]struct {
		from int64
		to   *int64
	}{"cpu-shares": {l.shares, &to.CPUShares}, "cpu-period": {l.period, &to.CPUPeriod}, "cpu-quota": {l.quota, &to.CPUQuota}, "pids-limit": {l.pids, &to.Pids}} {
		if l.typed(flag) {
			*number.to = number.from
		}
	}
	if to.Pids < 0 {
		to.Pids = 0
	}
	if to.CPUQuota < 0 { // the kernel's word for none
		to.CPUQuota = 0
	}
	if l.typed("blkio-weight") {
		to.BlkioWeight = l.weight
	}
	return checkLimits(*to)
}

func (l *limitFlags) size(flag, text string, to *int64) error {
	if !l.typed(flag) {
		return nil
	}
	if flag == "memory-swap" && text == "-1" {
		*to = unlimited
		return nil
	}
	n, err := parseSize(text)
	if err != nil {
		return fmt.Errorf("--%s %w", flag, err)
	}
	*to = n
	return nil
}

func (l *limitFlags) lists(to *berth.Limits) error {
	for _, list := range []struct {
		flag, text string
		to         *string
	}{{"cpuset-cpus", l.cpuset, &to.CPUs}, {"cpuset-mems", l.mems, &to.Mems}} {
		if !l.typed(list.flag) {
			continue
		}
		if list.text != "" {
			if err := parseList(list.text); err != nil {
				return fmt.Errorf("--%s %w", list.flag, err)
			}
		}
		*list.to = list.text
	}
	return nil
}

// checkLimits refuses limits that the kernel refuses, or that contradict each
// other.
func checkLimits(l berth.Limits) error {
	switch {
	case l.Memory != 0 && l.Memory < leastMemory:
		return fmt.Errorf("--memory %d: 6m is the least that starts a process", l.Memory)
	case l.MemorySwap != 0 && l.MemorySwap != unlimited && l.Memory == 0:
		return errors.New("--memory-swap: it holds memory and swap together: give --memory too")
	case l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return fmt.Errorf("--memory-swap %d: it holds memory and swap together: no less than --memory %d", l.MemorySwap, l.Memory)
	case l.Memory != 0 && l.MemoryReservation > l.Memory:
		return fmt.Errorf("--memory-reservation %d: no more than --memory %d", l.MemoryReservation, l.Memory)
	case l.NanoCPUs != 0 && (l.CPUPeriod != 0 || l.CPUQuota != 0):
		return errors.New("--cpus: it is a short way to say --cpu-period and --cpu-quota: give one of both")
	case l.CPUShares != 0 && (l.CPUShares < leastShares || l.CPUShares > mostShares):
		return fmt.Errorf("--cpu-shares %d: %d to %d", l.CPUShares, leastShares, mostShares)
	case l.CPUPeriod != 0 && (l.CPUPeriod < leastPeriod || l.CPUPeriod > mostPeriod):
		return fmt.Errorf("--cpu-period %d: %d to %d microseconds", l.CPUPeriod, leastPeriod, mostPeriod)
	case l.CPUQuota != 0 && l.CPUQuota < leastPeriod:
		return fmt.Errorf("--cpu-quota %d: %d microseconds or more", l.CPUQuota, leastPeriod)
	case l.NanoCPUs != 0 && l.NanoCPUs*usualPeriod/billionth < leastPeriod && l.NanoCPUs < billionth:
		return errors.New("--cpus: 0.01 is the least")
	case l.BlkioWeight != 0 && (l.BlkioWeight < leastWeight || l.BlkioWeight > mostWeight):
		return fmt.Errorf("--blkio-weight %d: %d to %d", l.BlkioWeight, leastWeight, mostWeight)
	}
	return nil
}

// parseThrottle reads DEVICE:RATE of a flag as --device-read-bps.
func parseThrottle(s string) (berth.Throttle, error) {
	device, rate, _ := strings.Cut(s, ":")
	n, err := parseSize(rate)
	if !strings.HasPrefix(device, "/dev/") || err != nil || n == 0 {
		return berth.Throttle{}, fmt.Errorf("%s: DEVICE:RATE is wanted, as /dev/sda:1mb", quoted(s))
	}
	return berth.Throttle{Device: device, Rate: uint64(n)}, nil
}

func parseThrottles(flag string, words []string) (out []berth.Throttle, err error) {
	for _, w := range words {
		t, err := parseThrottle(w)
		if err != nil {
			return nil, fmt.Errorf("--%s %w", flag, err)
		}
		out = append(out, t)
	}
	return out, nil
}
