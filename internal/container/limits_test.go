package container

import (
	"strings"
	"testing"

	"berth"
)

func TestWhatIsLiftedFromWhatRuns(t *testing.T) {
	for _, tt := range []struct {
		name        string
		before, now berth.Limits
		shares      int64
		refused     string
	}{
		{name: "never set"},
		{name: "set", now: berth.Limits{CPUShares: 512, MemoryReservation: 1 << 20, CPUs: "0"}, shares: 512},
		{name: "the usual shares", before: berth.Limits{CPUShares: 512}, shares: 1024},
		{name: "memory", before: berth.Limits{Memory: 64 << 20, NanoCPUs: 1e9, Pids: 5}},
		{name: "reservation", before: berth.Limits{MemoryReservation: 1 << 20}, refused: "--memory-reservation"},
		{name: "weight", before: berth.Limits{BlkioWeight: 100}, refused: "--blkio-weight"},
		{name: "processors", before: berth.Limits{CPUs: "0"}, refused: "--cpuset-cpus"},
		{name: "nodes", before: berth.Limits{Mems: "0"}, refused: "--cpuset-mems"},
		{name: "another value", before: berth.Limits{CPUs: "0"}, now: berth.Limits{CPUs: "1"}},
	} {
		got, err := lifted(tt.before, tt.now)
		if got.CPUShares != tt.shares {
			t.Errorf("%s: shares %d, want %d", tt.name, got.CPUShares, tt.shares)
		}
		if (err != nil) != (tt.refused != "") || err != nil && !strings.HasPrefix(err.Error(), tt.refused+": ") {
			t.Errorf("%s: %v, want %q", tt.name, err, tt.refused)
		}
	}
}
