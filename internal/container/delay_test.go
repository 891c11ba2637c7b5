package container

import (
	"testing"
	"time"

	"berth"
)

func TestDelay(t *testing.T) {
	short := berth.Exit{Started: time.Unix(100, 0), Finished: time.Unix(109, 0)}
	long := berth.Exit{Started: time.Unix(100, 0), Finished: time.Unix(110, 0)}
	var d time.Duration
	for i, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 51200, 60000, 60000} {
		if d = delay(d, short); d != want*time.Millisecond {
			t.Errorf("the delay of restart %d is %v, want %v ms", i+1, d, int64(want))
		}
	}
	if d = delay(d, long); d != 100*time.Millisecond {
		t.Errorf("after a run of 10 s it is %v", d)
	}
}

func TestRestarts(t *testing.T) {
	for _, c := range []struct {
		policy               string
		retries, count, code int
		want                 bool
	}{
		{"", 0, 0, 1, false}, {"no", 0, 0, 1, false},
		{"always", 0, 9, 0, true}, {"unless-stopped", 0, 9, 0, true},
		{"on-failure", 0, 9, 0, false}, {"on-failure", 0, 9, 1, true},
		{"on-failure", 3, 2, 1, true}, {"on-failure", 3, 3, 1, false},
	} {
		got := restarts(berth.Container{Restart: berth.Restart{Policy: c.policy, Retries: c.retries}, RestartCount: c.count, Last: berth.Exit{Code: c.code}})
		if got != c.want {
			t.Errorf("%+v: %v", c, got)
		}
	}
}
