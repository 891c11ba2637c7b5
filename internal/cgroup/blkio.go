package cgroup

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"

	"berth"

	"golang.org/x/sys/unix"
)

func checkBlkio(l berth.Limits, m Mode) error {
	if l.BlkioWeight != 0 {
		if err := checkWeight(m); err != nil {
			return err
		}
	}
	for _, t := range throttles(l) {
		if len(t.of) == 0 {
			continue
		}
		if !m.offers("io", t.v1, "io.max") {
			return unsupported(t.flag, "the kernel has no rates of devices", "a kernel with CONFIG_BLK_DEV_THROTTLING")
		}
		for _, d := range t.of {
			if _, err := device(t.flag, d.Device); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkWeight refuses weights where nothing shares a disk by them: that takes
// the scheduler bfq, or io.cost on v2, or on v1 the cfq of old kernels.
func checkWeight(m Mode) error {
	if m.Version != V2 && exists(path.Join(m.Mounts["blkio"], "blkio.weight")) {
		return nil
	}
	if qos, _ := read(m.Mounts["io"], "io.cost.qos"); m.Version == V2 && strings.Contains(qos, "enable=1") {
		return nil
	}
	disks, _ := filepath.Glob("/sys/block/*/queue/scheduler")
	other := "DISK"
	for _, d := range disks {
		s, _ := read(path.Dir(d), "scheduler")
		switch {
		case strings.Contains(s, "[bfq]"):
			return nil
		case !strings.HasPrefix(s, "[none]"), other == "DISK":
			other = path.Base(path.Dir(path.Dir(d)))
		}
	}
	return unsupported("--blkio-weight", "no disk's scheduler has weights", fmt.Sprintf("echo bfq >/sys/block/%s/queue/scheduler", other))
}

// A throttle is one direction of the rates of devices.
type throttle struct {
	of   []berth.Throttle
	flag string
	v1   string // file
	v2   string // key in io.max
}

func throttles(l berth.Limits) [2]throttle {
	return [2]throttle{
		{of: l.DeviceReadBps, flag: "--device-read-bps", v1: "blkio.throttle.read_bps_device", v2: "rbps"},
		{of: l.DeviceWriteBps, flag: "--device-write-bps", v1: "blkio.throttle.write_bps_device", v2: "wbps"},
	}
}

// device returns the numbers of a disk, 8:0. The kernel throttles whole disks.
func device(flag, name string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		return "", invalid(flag+" "+name, err.Error(), "give a disk as lsblk lists them")
	}
	if st.Mode&unix.S_IFMT != unix.S_IFBLK {
		return "", invalid(flag+" "+name, "it is no block device", "give a disk as lsblk lists them")
	}
	id := fmt.Sprintf("%d:%d", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	if sys := "/sys/dev/block/" + id; exists(sys + "/partition") {
		at, _ := os.Readlink(sys)
		return "", invalid(flag+" "+name, "it is a partition, and whole disks have a rate", "give /dev/"+path.Base(path.Dir(at)))
	}
	return id, nil
}

// Throttle makes the rates of devices of a running container those of l, and
// takes the others away. The runtime does it at the start.
func (g Group) Throttle(l berth.Limits) error {
	dir := g.dir("io")
	for _, t := range throttles(l) {
		want := map[string]string{}
		for _, d := range t.of {
			id, err := device(t.flag, d.Device)
			if err != nil {
				return err
			}
			want[id] = fmt.Sprint(d.Rate)
		}
		file, none := t.v1, "0"
		if g.mode.Version == V2 {
			file, none = "io.max", "max"
		}
		have, ok := read(dir, file)
		if !ok && len(want) == 0 {
			continue
		}
		if !ok {
			return fmt.Errorf("%s: cgroup %s has no %s: %w", t.flag, g.path, file, berth.ErrNotFound)
		}
		for line := range strings.Lines(have) {
			if id, _, _ := strings.Cut(line, " "); want[id] == "" && strings.Contains(id, ":") {
				want[id] = none
			}
		}
		for id, rate := range want {
			if g.mode.Version == V2 {
				rate = t.v2 + "=" + rate
			}
			if err := write(dir, file, id+" "+rate); err != nil {
				return fmt.Errorf("%s: limit device %s of cgroup %s: %w", t.flag, id, g.path, err)
			}
		}
	}
	return nil
}
