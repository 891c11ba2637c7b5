package cgroup

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth"
)

func TestCheckValues(t *testing.T) {
	m := detect(t)
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	rate := func(dev string) []berth.Throttle { return []berth.Throttle{{Device: dev, Rate: 1}} }
	for _, tt := range []struct {
		l    berth.Limits
		flag string // "": it is right
	}{
		{berth.Limits{}, ""},
		{berth.Limits{Memory: 64 << 20, MemorySwap: -1, MemoryReservation: 32 << 20, NanoCPUs: 5e8, CPUShares: 512, CPUs: "0", Mems: "0", Pids: 100}, ""},
		{berth.Limits{CPUQuota: 1000, CPUPeriod: 1000, Pids: -1}, ""},
		{berth.Limits{CPUQuota: -1}, ""},
		{berth.Limits{Memory: 1 << 20}, "--memory 1048576"},
		{berth.Limits{Memory: -1}, "--memory -1"},
		{berth.Limits{MemorySwap: 64 << 20}, "--memory-swap"},
		{berth.Limits{Memory: 64 << 20, MemorySwap: 32 << 20}, "--memory-swap"},
		{berth.Limits{Memory: 64 << 20, MemorySwap: -2}, "--memory-swap"},
		{berth.Limits{Memory: 64 << 20, MemoryReservation: 65 << 20}, "--memory-reservation"},
		{berth.Limits{NanoCPUs: 1}, "--cpus"},
		{berth.Limits{NanoCPUs: 1e9, CPUQuota: 1000}, "--cpus"},
		{berth.Limits{NanoCPUs: 8192.5e9}, "--cpus 8192.5"},
		{berth.Limits{CPUShares: 1}, "--cpu-shares"},
		{berth.Limits{CPUPeriod: 999}, "--cpu-period"},
		{berth.Limits{CPUQuota: 999}, "--cpu-quota"},
		{berth.Limits{CPUs: "0,8191"}, "--cpuset-cpus 0,8191"},
		{berth.Limits{CPUs: "0-2147483647"}, "--cpuset-cpus"},
		{berth.Limits{CPUs: "1-0"}, "--cpuset-cpus"},
		{berth.Limits{CPUs: "all"}, "--cpuset-cpus"},
		{berth.Limits{Mems: "1023"}, "--cpuset-mems"},
		{berth.Limits{Pids: -2}, "--pids-limit"},
		{berth.Limits{BlkioWeight: 9}, "--blkio-weight"},
		{berth.Limits{DeviceReadBps: rate("/dev/berth-test-none")}, "--device-read-bps /dev/berth-test-none"},
		{berth.Limits{DeviceReadBps: rate("/dev/null")}, "--device-read-bps /dev/null"},
		{berth.Limits{DeviceWriteBps: rate(file)}, "--device-write-bps"},
	} {
		err := Check(tt.l, m)
		if tt.flag == "" && err != nil || tt.flag != "" && (!errors.Is(err, berth.ErrInvalid) || !strings.HasPrefix(err.Error(), tt.flag)) {
			t.Errorf("%+v: %v, want an error of %q", tt.l, err, tt.flag)
		}
		if _, err2 := UpdateJSON(tt.l, m); fmt.Sprint(err) != fmt.Sprint(err2) {
			t.Errorf("%+v: Check: %v, UpdateJSON: %v", tt.l, err, err2)
		}
	}
}

// What a host lacks is said with the flag and with what to do.
func TestCheckLacks(t *testing.T) {
	some := []berth.Throttle{{Device: "/dev/null", Rate: 1}}
	for _, tt := range []struct {
		l    berth.Limits
		m    Mode
		want []string
	}{
		{berth.Limits{Memory: 64 << 20}, Mode{Version: V1}, []string{"--memory: ", `"memory"`, "memory"}},
		{berth.Limits{MemoryReservation: 64 << 20}, Mode{Version: V2}, []string{"--memory-reservation: ", `"memory"`}},
		{berth.Limits{NanoCPUs: 1e9}, Mode{Version: Hybrid}, []string{"--cpus: ", `"cpu"`}},
		{berth.Limits{CPUs: "0"}, Mode{Version: V1}, []string{"--cpuset-cpus: ", `"cpuset"`}},
		{berth.Limits{Pids: 1}, Mode{Version: V1}, []string{"--pids-limit: ", `"pids"`, "mount -t cgroup"}},
		{berth.Limits{DeviceReadBps: some}, Mode{Version: V2}, []string{"--device-read-bps: ", `"io"`}},
		{berth.Limits{DeviceWriteBps: some}, Mode{Version: V1}, []string{"--device-write-bps: ", `"blkio"`}},
		{berth.Limits{BlkioWeight: 100}, Mode{Version: V1}, []string{"--blkio-weight: ", `"blkio"`}},
		{berth.Limits{Memory: 64 << 20, MemorySwap: 65 << 20}, Mode{Version: V1, Mounts: map[string]string{"memory": t.TempDir()}}, []string{"--memory-swap: ", "swapaccount=1"}},
		{berth.Limits{MemoryReservation: 64 << 20}, Mode{Version: V1, Mounts: map[string]string{"memory": t.TempDir()}}, []string{"--memory-reservation: ", "soft limits"}},
		{berth.Limits{NanoCPUs: 1e8}, Mode{Version: V1, Mounts: map[string]string{"cpu": t.TempDir()}}, []string{"--cpus: ", "CONFIG_CFS_BANDWIDTH"}},
		{berth.Limits{CPUQuota: 1e4}, Mode{Version: V1, Mounts: map[string]string{"cpu": t.TempDir()}}, []string{"--cpu-quota: ", "CONFIG_CFS_BANDWIDTH"}},
		{berth.Limits{DeviceReadBps: some}, Mode{Version: V1, Mounts: map[string]string{"blkio": t.TempDir()}}, []string{"--device-read-bps: ", "CONFIG_BLK_DEV_THROTTLING"}},
	} {
		err := Check(tt.l, tt.m)
		if !errors.Is(err, berth.ErrUnsupported) {
			t.Errorf("%+v: %v", tt.l, err)
			continue
		}
		for _, w := range tt.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%+v: %v: want %q", tt.l, err, w)
			}
		}
		t.Log(err)
	}
	if err := Check(berth.Limits{Memory: 64 << 20, MemorySwap: -1}, Mode{Version: V1, Mounts: map[string]string{"memory": t.TempDir()}}); err != nil {
		t.Errorf("as much swap as there is, without a count: %v", err)
	}
}

func TestCheckWeight(t *testing.T) {
	m := detect(t)
	disks, _ := filepath.Glob("/sys/block/*/queue/scheduler")
	bfq := false
	for _, d := range disks {
		s, _ := os.ReadFile(d)
		bfq = bfq || strings.Contains(string(s), "[bfq]")
	}
	err := Check(berth.Limits{BlkioWeight: 100}, m)
	if bfq != (err == nil) || err != nil && (!errors.Is(err, berth.ErrUnsupported) || !strings.Contains(err.Error(), "echo bfq >/sys/block/")) {
		t.Errorf("a disk has bfq: %v; %v", bfq, err)
	}
	dir := t.TempDir()
	put := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put("io.cost.qos", "8:0 enable=1 ctrl=auto\n")
	put("blkio.weight", "500\n")
	for _, m := range []Mode{{Version: V2, Mounts: map[string]string{"io": dir}}, {Version: V1, Mounts: map[string]string{"blkio": dir}}} {
		if err := Check(berth.Limits{BlkioWeight: 100}, m); err != nil {
			t.Errorf("%s: %v", m.Version, err)
		}
	}
}

func TestUpdateJSON(t *testing.T) {
	all := map[string]string{"memory": "/", "cpu": "/", "pids": "/"}
	for _, tt := range []struct {
		name string
		l    berth.Limits
		m    Mode
		want string
	}{
		{"nothing to limit with", berth.Limits{}, Mode{Version: V2}, `{}`},
		{"no limits", berth.Limits{}, Mode{Version: V2, Mounts: all, Swap: true},
			`{"memory":{"limit":-1,"swap":-1},"cpu":{"quota":-1,"period":100000},"pids":{"limit":-1}}`},
		{"no count of swap", berth.Limits{Memory: 64 << 20, MemorySwap: -1}, Mode{Version: V2, Mounts: all},
			`{"memory":{"limit":67108864},"cpu":{"quota":-1,"period":100000},"pids":{"limit":-1}}`},
		{"swap is twice the memory", berth.Limits{Memory: 64 << 20, MemoryReservation: 32 << 20, Pids: 5}, Mode{Version: V2, Mounts: all, Swap: true},
			`{"memory":{"limit":67108864,"reservation":33554432,"swap":134217728},"cpu":{"quota":-1,"period":100000},"pids":{"limit":5}}`},
		{"processors", berth.Limits{NanoCPUs: 25e7, CPUShares: 512}, Mode{Version: V2, Mounts: map[string]string{"cpu": "/"}},
			`{"cpu":{"shares":512,"quota":25000,"period":100000}}`},
		{"quota", berth.Limits{CPUQuota: 2000, CPUPeriod: 5000}, Mode{Version: V2, Mounts: map[string]string{"cpu": "/"}},
			`{"cpu":{"quota":2000,"period":5000}}`},
	} {
		b, err := UpdateJSON(tt.l, tt.m)
		if err != nil || string(b) != tt.want || !json.Valid(b) {
			t.Errorf("%s: %v\n got %s\nwant %s", tt.name, err, b, tt.want)
		}
	}
}
