package cgroup

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"berth"
)

// Check returns an error for the first limit that this host cannot keep. It
// names the flag, why, and what to do: a limit that does not hold is not
// accepted.
func Check(l berth.Limits, m Mode) error {
	for _, check := range []func(berth.Limits, Mode) error{checkValues, checkControllers, checkMemory, checkCPU, checkBlkio} {
		if err := check(l, m); err != nil {
			return err
		}
	}
	return nil
}

// invalid and unsupported are the two kinds of errors of Check.
func invalid(flag, why, cure string) error {
	return fmt.Errorf("%s: %s: %w: %s", flag, why, berth.ErrInvalid, cure)
}

func unsupported(flag, why, cure string) error {
	return fmt.Errorf("%s: %s: %w: %s", flag, why, berth.ErrUnsupported, cure)
}

// checkValues refuses what no kernel takes, in words the kernel's EINVAL lacks.
func checkValues(l berth.Limits, _ Mode) error {
	for _, v := range []struct {
		flag        string
		value       int64
		least, most int64
	}{
		{"--memory", l.Memory, 6 << 20, unlimited}, // below, a runtime cannot start it (Docker's least)
		{"--memory-reservation", l.MemoryReservation, 0, unlimited},
		{"--cpus", l.NanoCPUs, 1e7, 1 << 62},
		{"--cpu-shares", l.CPUShares, 2, 262144},
		{"--cpu-period", l.CPUPeriod, 1000, 1000000},
		{"--cpu-quota", l.CPUQuota, 1000, 1 << 44},
		{"--pids-limit", l.Pids, 1, 1 << 22},
		{"--blkio-weight", int64(l.BlkioWeight), 10, 1000},
	} {
		none := v.value == 0 || v.value == -1 && (v.flag == "--cpu-quota" || v.flag == "--pids-limit")
		if !none && (v.value < v.least || v.value > v.most) {
			return invalid(fmt.Sprint(v.flag, " ", v.value), "out of range", fmt.Sprintf("it is %d to %d", v.least, v.most))
		}
	}
	switch {
	case l.NanoCPUs != 0 && (l.CPUQuota != 0 || l.CPUPeriod != 0):
		return invalid("--cpus", "it is a quota in a period", "give either --cpus or --cpu-quota and --cpu-period")
	case l.MemorySwap != 0 && l.Memory == 0:
		return invalid("--memory-swap", "it includes the memory, which has no limit", "give --memory too")
	case l.MemorySwap < -1, l.MemorySwap > 0 && l.MemorySwap < l.Memory:
		return invalid("--memory-swap", "it includes the memory and is less", "give --memory or more, or -1")
	case l.Memory != 0 && l.MemoryReservation > l.Memory:
		return invalid("--memory-reservation", "it is more than --memory", "give less")
	}
	return nil
}

// checkControllers refuses limits whose controller is not there.
func checkControllers(l berth.Limits, m Mode) error {
	for _, n := range []struct {
		flag       string
		wanted     bool
		controller string
	}{
		{"--memory", l.Memory != 0, "memory"},
		{"--memory-reservation", l.MemoryReservation != 0, "memory"},
		{"--cpus", l.NanoCPUs != 0, "cpu"},
		{"--cpu-shares", l.CPUShares != 0, "cpu"},
		{"--cpu-period", l.CPUPeriod != 0, "cpu"},
		{"--cpu-quota", l.CPUQuota > 0, "cpu"},
		{"--cpuset-cpus", l.CPUs != "", "cpuset"},
		{"--cpuset-mems", l.Mems != "", "cpuset"},
		{"--pids-limit", l.Pids > 0, "pids"},
		{"--blkio-weight", l.BlkioWeight != 0, "io"},
		{"--device-read-bps", len(l.DeviceReadBps) > 0, "io"},
		{"--device-write-bps", len(l.DeviceWriteBps) > 0, "io"},
	} {
		if n.wanted && !m.Has(n.controller) {
			name := m.name(n.controller)
			return unsupported(n.flag, fmt.Sprintf("no cgroup controller %q", name), m.cure(n.controller))
		}
	}
	return nil
}

// cure says how a controller is had, from what /proc/cgroups knows of it.
func (m Mode) cure(controller string) string {
	config := map[string]string{
		"memory": "CONFIG_MEMCG", "cpu": "CONFIG_CGROUP_SCHED", "cpuset": "CONFIG_CPUSETS", "pids": "CONFIG_CGROUP_PIDS", "io": "CONFIG_BLK_CGROUP",
	}[controller]
	name := m.name(controller)
	all, _ := os.ReadFile("/proc/cgroups")
	for line := range strings.Lines(string(all)) { // name hierarchy groups enabled; blkio on v2 too
		f := strings.Fields(line)
		switch {
		case len(f) != 4 || f[0] != name && (controller != "io" || f[0] != "blkio"):
		case f[3] == "0":
			return fmt.Sprintf("boot the kernel with cgroup_enable=%s and without cgroup_disable=%[1]s", f[0])
		case m.Version != V2:
			return fmt.Sprintf("mkdir -p %s/%s && mount -t cgroup -o %[2]s %[2]s %[1]s/%[2]s", unifiedRoot, name)
		case f[1] != "0":
			return "unmount its v1 hierarchy, it can be in one only"
		}
	}
	return "a kernel with " + config + ", and a parent group that hands it on"
}

func checkMemory(l berth.Limits, m Mode) error {
	if l.MemorySwap > 0 && !m.Swap {
		return unsupported("--memory-swap", "the kernel does not count swap", "boot it with swapaccount=1, or leave the flag out")
	}
	if l.MemoryReservation != 0 && !m.offers("memory", "memory.soft_limit_in_bytes", "memory.low") {
		return unsupported("--memory-reservation", "the kernel has no soft limits", "leave it out")
	}
	return nil
}

// swapAccounting reports whether memory and swap can be bounded together. On
// v2 the root has no file that tells, and there may be no group yet; the kernel
// has the limit if it has swap at all.
func (m Mode) swapAccounting() bool {
	return m.Has("memory") && m.offers("memory", "memory.memsw.limit_in_bytes", "memory.swap.max") && exists("/proc/swaps")
}

// offers reports whether groups have a file of a controller. On v2 the root
// lacks most, so a group that is there is looked at; without any it is assumed,
// and the runtime's error tells.
func (m Mode) offers(controller, v1, v2 string) bool {
	if m.Version != V2 {
		return exists(path.Join(m.Mounts[m.name(controller)], v1))
	}
	groups, _ := filepath.Glob(unifiedRoot + "/*/cgroup.controllers")
	for _, g := range groups {
		if s, _ := read(path.Dir(g), path.Base(g)); slices.Contains(strings.Fields(s), controller) {
			return exists(path.Join(path.Dir(g), v2))
		}
	}
	return true
}

func exists(p string) bool {
	_, err := os.Stat(p)
	return err == nil
}

func checkCPU(l berth.Limits, m Mode) error {
	h, err := readHost()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	if l.NanoCPUs > int64(h.online)*1e9 {
		return invalid("--cpus "+strconv.FormatFloat(float64(l.NanoCPUs)/1e9, 'f', -1, 64), fmt.Sprintf("this host has %d processors", h.online), "ask for no more")
	}
	if (l.NanoCPUs != 0 || l.CPUQuota > 0 || l.CPUPeriod != 0) && !m.offers("cpu", "cpu.cfs_quota_us", "cpu.max") {
		flag := "--cpus"
		if l.NanoCPUs == 0 {
			flag = "--cpu-quota"
		}
		return unsupported(flag, "the kernel has no quotas of time", "use --cpu-shares, or a kernel with CONFIG_CFS_BANDWIDTH")
	}
	for _, s := range []struct{ flag, want, v1, v2 string }{
		{"--cpuset-cpus", l.CPUs, "cpuset.effective_cpus", "cpuset.cpus.effective"},
		{"--cpuset-mems", l.Mems, "cpuset.effective_mems", "cpuset.mems.effective"},
	} {
		if s.want == "" {
			continue
		}
		file := s.v1
		if m.Version == V2 {
			file = s.v2
		}
		have, ok := read(m.Mounts["cpuset"], file)
		if !ok {
			return unsupported(s.flag, "the cgroup root has no "+file, "leave it out")
		}
		if err := within(s.want, have); err != nil {
			return invalid(s.flag+" "+s.want, err.Error(), "this host has "+have)
		}
	}
	return nil
}

// within returns an error if a list such as 0-2,4 is none, or has a number that
// the other has not.
func within(want, have string) error {
	w, err := ranges(want)
	if err != nil {
		return err
	}
	h, err := ranges(have)
	if err != nil {
		return err
	}
	for _, r := range w {
		for n := r[0]; n <= r[1]; n++ {
			if !slices.ContainsFunc(h, func(in [2]int) bool { return in[0] <= n && n <= in[1] }) {
				return fmt.Errorf("there is no %d", n) // the first missing one ends a range of any length
			}
		}
	}
	return nil
}

// ranges reads a list of numbers and ranges (cpuset(7), list format).
func ranges(s string) ([][2]int, error) {
	var all [][2]int
	for part := range strings.SplitSeq(s, ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 31)
		b, err2 := strconv.ParseUint(to, 10, 31)
		if err1 != nil || err2 != nil || a > b {
			return nil, fmt.Errorf("%q is no list like 0-2,4", s)
		}
		all = append(all, [2]int{int(a), int(b)})
	}
	return all, nil
}
