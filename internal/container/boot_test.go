package container

import (
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"berth"
)

func TestWhoRunsAfterABoot(t *testing.T) {
	failed := berth.Exit{Code: 125, Error: "port taken", Finished: time.Now()}
	ended := berth.Exit{Code: 1, Started: time.Now(), Finished: time.Now()}
	for _, tt := range []struct {
		policy string
		wanted bool
		last   berth.Exit
		want   bool
	}{
		{"", true, berth.Exit{}, false},
		{"no", true, berth.Exit{}, false},
		{"no", false, failed, false},
		{"always", true, berth.Exit{}, true},
		{"always", false, ended, true}, // as docker: stopped by hand, but the daemon starts anew
		{"unless-stopped", true, berth.Exit{}, true},
		{"unless-stopped", false, ended, false},
		{"unless-stopped", false, berth.Exit{}, false}, // never started
		{"unless-stopped", false, failed, true},        // nobody stopped it
		{"on-failure", true, berth.Exit{}, true},
		{"on-failure", false, ended, false}, // its retries are used up, or it was stopped
	} {
		c := berth.Container{Restart: berth.Restart{Policy: tt.policy}, Wanted: tt.wanted, Last: tt.last}
		if got := bootable(c); got != tt.want {
			t.Errorf("policy %q, wanted %v, last %+v: got %v", tt.policy, tt.wanted, tt.last, got)
		}
	}
}

func TestOneThatUsesAnothersNamespaceComesAfterIt(t *testing.T) {
	of := func(id, name, net, pid string) Detail {
		return Detail{Container: berth.Container{ID: id, Name: name, Net: berth.Net{Mode: net}, PidMode: pid}}
	}
	all := []Detail{
		of("c1aa", "third", "container:second", ""),
		of("c2aa", "second", "", "container:c3"),
		of("c3aa", "first", "", "host"),
		of("c4aa", "alone", "container:gone", ""),
		of("c5aa", "left", "container:right", ""),
		of("c6aa", "right", "container:left", ""),
	}
	var mu sync.Mutex
	var got []string
	waves(all, func(d Detail) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, d.Name)
	})
	at := func(name string) int { return slices.Index(got, name) }
	if len(got) != len(all) || at("first") > at("second") || at("second") > at("third") {
		t.Errorf("order: %s", strings.Join(got, " "))
	}
	for _, name := range []string{"alone", "left", "right"} {
		if at(name) < 0 {
			t.Errorf("%s was left out", name)
		}
	}
}
