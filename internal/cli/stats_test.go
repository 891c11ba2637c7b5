package cli

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"berth"
	"berth/internal/container"
)

func TestBytesAreAsDockerShowsThem(t *testing.T) {
	for _, tt := range []struct {
		n               int64
		decimal, binary string
	}{
		{0, "0B", "0B"},
		{999, "999B", "999B"},
		{1000, "1kB", "1000B"},
		{1023, "1.02kB", "1023B"},
		{1 << 20, "1.05MB", "1MiB"},
		{999999, "1000kB", "976.6KiB"},
		{25276399616, "25.3GB", "23.54GiB"},
		{10484732, "10.5MB", "9.999MiB"},
		{1<<63 - 1, "9.22EB", "8EiB"},
	} {
		if d, b := decimal(tt.n), binary(tt.n); d != tt.decimal || b != tt.binary {
			t.Errorf("%d: got %s and %s, want %s and %s", tt.n, d, b, tt.decimal, tt.binary)
		}
	}
}

func TestWhatIsNotCountedIsNoZero(t *testing.T) {
	d := watched{container.Detail{Container: berth.Container{ID: "0123456789abcdef", Name: "web"}}, "web"}
	got := statsAsRow(d, container.Usage{}, container.Usage{}, true, false)
	want := statsRow{
		Container: "web", ID: "0123456789ab", Name: "web",
		CPUPerc: "--", MemPerc: "--", MemUsage: "-- / --", NetIO: "-- / --", BlockIO: "-- / --", PIDs: "--",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}
