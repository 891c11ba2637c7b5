package cli

import (
	"errors"
	"fmt"
	"slices"
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
	readBps, writeBps         []string
	lifts                     bool // a rate of 0 takes one away
	typed                     func(flag string) bool
}

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
	f.StringArrayVar(&l.readBps, "device-read-bps", nil, "most bytes a second from a device, as `DEVICE:RATE`")
	f.StringArrayVar(&l.writeBps, "device-write-bps", nil, "most bytes a second to a device, as `DEVICE:RATE`")
	for _, name := range []string{
		"memory", "memory-swap", "memory-reservation", "cpus", "cpu-shares", "cpu-period", "cpu-quota", "cpuset-cpus", "cpuset-mems",
		"pids-limit", "blkio-weight", "device-read-bps", "device-write-bps",
	} {
		completeFlag(cmd, name, cobra.NoFileCompletions)
	}
}

// apply puts what was typed into limits. Whether they make sense and this host
// can keep them is not looked at.
func (l *limitFlags) apply(to *berth.Limits) error {
	for _, size := range []struct {
		flag, text string
		to         *int64
	}{{"memory", l.memory, &to.Memory}, {"memory-swap", l.swap, &to.MemorySwap}, {"memory-reservation", l.reservation, &to.MemoryReservation}} {
		if !l.typed(size.flag) {
			continue
		}
		if size.flag == "memory-swap" && size.text == "-1" {
			*size.to = -1
			continue
		}
		n, err := parseSize(size.text)
		if err != nil {
			return fmt.Errorf("--%s %w", size.flag, err)
		}
		*size.to = n
	}
	for _, number := range []struct {
		flag     string
		from, to *int64
	}{{"cpu-shares", &l.shares, &to.CPUShares}, {"cpu-period", &l.period, &to.CPUPeriod}, {"cpu-quota", &l.quota, &to.CPUQuota}, {"pids-limit", &l.pids, &to.Pids}} {
		if l.typed(number.flag) {
			*number.to = *number.from
		}
	}
	if l.typed("cpuset-cpus") {
		to.CPUs = l.cpuset
	}
	if l.typed("cpuset-mems") {
		to.Mems = l.mems
	}
	if l.typed("blkio-weight") {
		to.BlkioWeight = l.weight
	}
	err := errors.Join(l.throttles("device-read-bps", l.readBps, &to.DeviceReadBps), l.throttles("device-write-bps", l.writeBps, &to.DeviceWriteBps))
	if err != nil || !l.typed("cpus") {
		return err
	}
	if to.NanoCPUs, err = parseCPUs(l.cpus); err != nil {
		return fmt.Errorf("--cpus %w", err)
	}
	return nil
}

// throttles puts the rates of devices that were typed in the place of those that
// the devices have.
func (l *limitFlags) throttles(flag string, words []string, rates *[]berth.Throttle) error {
	for _, w := range words {
		device, lifted := strings.CutSuffix(w, ":0")
		t := berth.Throttle{Device: device}
		if !lifted || !l.lifts {
			var err error
			if t, err = parseThrottle(w); err != nil {
				return fmt.Errorf("--%s %w", flag, err)
			}
		}
		// A copy: the list is that of the record as it was, too.
		*rates = slices.DeleteFunc(slices.Clone(*rates), func(old berth.Throttle) bool { return old.Device == t.Device })
		if t.Rate > 0 {
			*rates = append(*rates, t)
		}
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
