package cli

import (
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"berth"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0": 0, "1": 1, "1b": 1, "64k": 64 << 10, "64K": 64 << 10, "64kb": 64 << 10, "64KiB": 64 << 10, "1.5g": 3 << 29, "2 m": 2 << 20, "1T": 1 << 40, "3p": 3 << 50, "1.9": 1,
		"0.1k": 102,
	} {
		if got, err := parseSize(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "m", "-1", "+1", "1x", "1mm", "1..5", "1.5.5", "1e3", "0x10", "1  m", " 1", "99999p", "1m\n"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

func TestProcessors(t *testing.T) {
	for text, want := range map[string]int64{"1": 1e9, "0.5": 5e8, "1.5": 15e8, ".25": 25e7, "0.000000001": 1} {
		if got, err := parseCPUs(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "x", "-1", "1/2", "1e3", "0.0000000001", "99999999999", "1.2.3"} {
		if got, err := parseCPUs(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

func TestSignals(t *testing.T) {
	for text, want := range map[string]unix.Signal{
		"TERM": unix.SIGTERM, "SIGTERM": unix.SIGTERM, "sigint": unix.SIGINT, "9": unix.SIGKILL, "64": 64, "RTMIN": 34, "SIGRTMIN+3": 37, "RTMAX-1": 63,
	} {
		if got, err := parseSignal(text); err != nil || got != want {
			t.Errorf("%s: got %d, %v, want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "65", "-9", "SIG", "SIG9", "FOO", "RTMIN+31", "RTMIN-1", "RTMAX+1", "RTMIN+x"} {
		if got, err := parseSignal(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

func TestDetachKeys(t *testing.T) {
	for text, want := range map[string]string{"ctrl-p,ctrl-q": "\x10\x11", "a": "a", "ctrl-[,x": "\x1bx", "ctrl-@": "\x00", "ctrl-_": "\x1f", "ctrl-\\": "\x1c"} {
		if got, err := parseKeys(text); err != nil || string(got) != want {
			t.Errorf("%s: got %q, %v, want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "ctrl-", "ctrl-1", "ab", "ctrl-P", "a,,b", "é", " "} {
		if got, err := parseKeys(text); err == nil {
			t.Errorf("%q is read as %q", text, got)
		}
	}
}

func TestTimes(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for text, want := range map[string]time.Time{
		"": {}, "10m": now.Add(-10 * time.Minute), "1h30m": now.Add(-90 * time.Minute), "2026-01-01T00:00:00Z": time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		"2026-01-01T02:00:00.5+02:00": time.Date(2026, 1, 1, 0, 0, 0, 5e8, time.UTC), "2026-01-01": time.Date(2026, 1, 1, 0, 0, 0, 0, time.Local),
		"2026-01-01T00:10": time.Date(2026, 1, 1, 0, 10, 0, 0, time.Local), "1700000000": time.Unix(1700000000, 0), "1700000000.25": time.Unix(1700000000, 25e7), "0": time.Unix(0, 0),
	} {
		if got, err := parseTime("since", text, now); err != nil || !got.Equal(want) {
			t.Errorf("%s: got %v, %v, want %v", text, got, err, want)
		}
	}
	for _, text := range []string{"x", "2026-13-01", "1.x", "1700000000.1234567890"} {
		if got, err := parseTime("since", text, now); err == nil {
			t.Errorf("%q is read as %v", text, got)
		}
	}
}

func TestWordsThatCannotBe(t *testing.T) {
	bad := func(parser string, err error, words string) {
		t.Helper()
		if err == nil {
			t.Errorf("%s reads %q", parser, words)
		} else if strings.ContainsAny(err.Error(), "\n\x00") {
			t.Errorf("%s of %q: more than one line: %v", parser, words, err)
		}
	}
	for _, w := range []string{"", ":", "/a", "a:/b", "/a:b", "/a:/b:ro:x", "/a:/b:", "/a:/b:ro,rw", "/a:/b:shared,slave", "/a:/b:nocopy", "/a:/b:cached", "~/a:/b", "/a:/", "/a:/b\x00"} {
		_, err := parseVolume(w)
		bad("-v", err, w)
	}
	for _, w := range []string{
		"", "x", "type=bind", "type=bind,src=/a", "type=bind,src=a,dst=/b", "type=volume,src=a,dst=/b", "type=image,src=a,dst=/b", "type=tmpfs,src=/a,dst=/b", "type=tmpfs,dst=b",
		"type=bind,src=/a,dst=/b,ro=x", "type=bind,src=/a,dst=/b,bind-propagation=x", "type=bind,src=/a,dst=/b,bind-recursive=readonly", "type=bind,src=/a,dst=/b,tmpfs-size=1m",
		"type=tmpfs,dst=/b,bind-nonrecursive", "type=tmpfs,dst=/b,tmpfs-mode=9", "type=tmpfs,dst=/b,tmpfs-size=x", "type=bind,src=/a,dst=/b,consistency=cached", `type=bind,"src=/a`, "type=bind,src=/a,dst=/b,volume-nocopy=1",
	} {
		_, err := parseMount(w)
		bad("--mount", err, w)
	}
	for _, w := range []string{"", "fuse", "/dev/a:b:r", "/dev/a:/b:x", "/dev/a:/b:rr", "/dev/a:/b:r:w", "/dev/tty*", "vendor.com/gpu=all", "/dev/a:"} {
		_, err := parseDevice(w)
		bad("--device", err, w)
	}
	for _, w := range []string{"", "nofile", "nofile=", "nofile=x", "nofile=1:2:3", "=1"} {
		_, err := parseUlimit(w)
		bad("--ulimit", err, w)
	}
	for _, w := range []string{"", "sda:1m", "/dev/sda", "/dev/sda:", "/dev/sda:0", "/dev/sda:-1"} {
		_, err := parseThrottle(w)
		bad("--device-read-bps", err, w)
	}
	for _, w := range []string{"", "a", "=1.2.3.4", "a:x", "a:1.2.3", "a=fe80::1%eth0", "a b:1.2.3.4", "a:host-gatewa"} {
		_, err := parseHost(w)
		bad("--add-host", err, w)
	}
	for _, w := range []string{"", "a b", "container:", "container:a/b", "ns:x", "ns:", "x:y", "name=", "ip=10.0.0.1", "name=a,ip=x", "name=a,ip=fd00::1", "name=none", "name=a,link-local-ip=169.254.0.1", "name=a,driver-opt=x=y", "name=a,alias=b c", "name=a,gw-priority=x", "name=a,rate-in=x", "name=a,rate-out=10mb", "name=a,burst=64kb", "name=a,rate-in=1", "name=a,b"} {
		_, _, err := parseNetwork(w)
		bad("--network", err, w)
	}
	for _, w := range []string{"", "x", "seccomp", "seccomp=", "apparmor=", "no-new-privileges=maybe", "systempaths=unconfined", "label:disable", "writable-cgroups=true"} {
		bad("--security-opt", parseSecurity(w, new(berth.Security)), w)
	}
}

func TestStopFlags(t *testing.T) {
	for _, tt := range []struct {
		words   string
		seconds any
		signal  unix.Signal
	}{{"", nil, 0}, {"-t 3 -s HUP", 3, unix.SIGHUP}, {"--time 0", 0, 0}, {"--timeout -1", -1, 0}} {
		var s stopFlags
		cmd := &cobra.Command{Use: "stop"}
		s.flags(cmd)
		if err := cmd.ParseFlags(strings.Fields(tt.words)); err != nil {
			t.Fatal(err)
		}
		n, err := s.seconds()
		signal, err2 := s.signal()
		if err != nil || err2 != nil || signal != tt.signal || (n == nil) != (tt.seconds == nil) || n != nil && *n != tt.seconds {
			t.Errorf("%q: got %v, %v, %v, %v", tt.words, n, signal, err, err2)
		}
	}
}

func TestTail(t *testing.T) {
	for text, want := range map[string]int{"all": -1, "0": 0, "7": 7, "-3": -1} {
		l := logsFlags{tail: text}
		if got, err := l.lines(); err != nil || got != want {
			t.Errorf("%s: got %d, %v", text, got, err)
		}
	}
	if _, err := (&logsFlags{tail: "x"}).lines(); err == nil {
		t.Error("--tail x is read")
	}
}

// FuzzRunWords gives one word to everything that reads a word of "run", and
// looks at what they let through.
func FuzzRunWords(f *testing.F) {
	for _, s := range []string{
		"64m", "1.5", "/a:/b:ro,rslave", "type=bind,src=/a,dst=/b,ro", "type=tmpfs,dst=/b,tmpfs-size=1m", "/run:size=3m", "/dev/a:/b:rw", "nofile=1:2", "on-failure:3", "RTMIN+3", "ctrl-p,q",
		"db:10.0.0.7", "six=[fd00::7]", "name=a,ip=10.0.0.1,alias=b", "container:a", "ns:/run/netns/a", "no-new-privileges=1", "/dev/sda:1m", "10m",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if n, err := parseSize(s); err == nil && n < 0 {
			t.Errorf("size %d", n)
		}
		if n, err := parseCPUs(s); err == nil && n < 0 {
			t.Errorf("processors %d", n)
		}
		for name, parse := range map[string]func(string) (berth.Mount, error){"-v": parseVolume, "--mount": parseMount, "--tmpfs": parseTmpfs} {
			m, err := parse(s)
			if err == nil && (path.Clean(m.Target) != m.Target || !path.IsAbs(m.Target) || m.Target == "/" || (m.Type == "bind") != filepath.IsAbs(m.Source)) {
				t.Errorf("%s: %+v", name, m)
			}
		}
		if d, err := parseDevice(s); err == nil && (!path.IsAbs(d.Source) || !path.IsAbs(d.Target) || !isPermissions(d.Permissions)) {
			t.Errorf("device %+v", d)
		}
		if line, err := parseHost(s); err == nil {
			if again, err := parseHost(line); err != nil || again != line {
				t.Errorf("host %q is read again as %q, %v", line, again, err)
			}
		}
		if mode, a, err := parseNetwork(s); err == nil && (mode == "") != (berth.ValidName("network", a.Network) == nil) {
			t.Errorf("network %q, %+v", mode, a)
		}
		if n, err := parseSignal(s); err == nil {
			if again, err := parseSignal(signalWord(n)); err != nil || again != n {
				t.Errorf("signal %d is read again as %d, %v", n, again, err)
			}
		}
		if k, err := parseKeys(s); err == nil && len(k) == 0 {
			t.Error("no keys")
		}
		if r, err := parseRestart(s); err == nil && (r.Retries < 0 || !slices.Contains([]string{"", "no", "always", "unless-stopped", "on-failure"}, r.Policy)) {
			t.Errorf("restart %+v", r)
		}
		_, _ = parseUlimit(s)
		_, _ = parseThrottle(s)
		_, _ = parseTime("since", s, time.Unix(0, 0))
		_ = parseSecurity(s, new(berth.Security))
	})
}

func FuzzEnvFile(f *testing.F) {
	f.Add([]byte("\ufeffA=1\n# x\n B=\"q\" \r\nC\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		all, err := parseEnvFile(text, func(string) (string, bool) { return "", true })
		if err != nil && all != nil {
			t.Error("an error, and variables")
		}
		for _, w := range all {
			if name, _, ok := strings.Cut(w, "="); !ok || name == "" || strings.ContainsAny(name, " \t\n") || strings.ContainsAny(w, "\n\x00") {
				t.Errorf("variable %q", w)
			}
		}
	})
}

func TestCapabilitiesAreNamedOnce(t *testing.T) {
	if d := cmp.Diff([]string{"NET_ADMIN", "ALL"}, capabilities([]string{"cap_net_admin", "NET_ADMIN", "all"})); d != "" {
		t.Error(d)
	}
}

func TestFlagsThatAreReadLater(t *testing.T) {
	var x execFlags
	var k killFlags
	for words, flags := range map[string]func(*cobra.Command){"-e A=1 -itd --detach-keys ctrl-a": x.flags, "": k.flags} {
		cmd := &cobra.Command{Use: "x"}
		flags(cmd)
		if err := cmd.ParseFlags(strings.Fields(words)); err != nil {
			t.Fatal(err)
		}
	}
	env, err := x.environment()
	keys, err2 := x.detachKeys()
	signal, err3 := k.signal()
	if err != nil || err2 != nil || err3 != nil || !slices.Equal(env, []string{"A=1"}) || string(keys) != "\x01" || signal != unix.SIGKILL || !x.detach || !x.tty || !x.interactive {
		t.Errorf("got %q, %q, %v, %+v; %v, %v, %v", env, keys, signal, x, err, err2, err3)
	}
}
