package cli

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"berth"
	"berth/engine"
)

var (
	psNow   = time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)
	psFront = berth.Network{
		ID: strings.Repeat("f", 64), Name: "front",
		Subnets: []berth.Subnet{{Prefix: netip.MustParsePrefix("10.9.0.0/24"), Gateway: netip.MustParseAddr("10.9.0.1")}},
	}
)

// psContainers are one of each state.
func psContainers() []containerDetail {
	timeout := 3
	port := func(host string, hostPort, to uint16) berth.Port {
		return berth.Port{
			PortKey: berth.PortKey{Protocol: berth.TCP, HostIP: netip.MustParseAddr(host), HostPort: hostPort}, Network: psFront.ID,
			To: netip.AddrPortFrom(netip.MustParseAddr("10.9.0.2"), to),
		}
	}
	web := containerDetail{
		Container: berth.Container{
			ID: strings.Repeat("ab", 32), Name: "web", Created: psNow.Add(-2 * time.Hour), Rootfs: "/srv/web", Hostname: "web", ReadOnly: true, Init: true,
			Process: berth.Process{
				Entrypoint: []string{"/bin/httpd"}, Command: []string{"-f", "-p", "80", "--long-option"}, Env: []string{"A=1"}, Dir: "/srv", User: "www-data", Terminal: true, Stdin: true,
				Ulimits: []berth.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, Groups: []string{"adm"},
			},
			Mounts: []berth.Mount{
				{Type: "bind", Source: "/srv/a-long-name-of-data", Target: "/data", Options: []string{"ro", "rslave"}}, {Type: "tmpfs", Target: "/run", Options: []string{"size=1m"}},
			},
			Devices:  []berth.Device{{Source: "/dev/fuse", Target: "/dev/fuse", Permissions: "rwm"}},
			Limits:   berth.Limits{Memory: 256 << 20, NanoCPUs: 15e8, Pids: 100, DeviceReadBps: []berth.Throttle{{Device: "/dev/sda", Rate: 1 << 20}}},
			Security: berth.Security{CapAdd: []string{"NET_ADMIN"}, NoNewPrivileges: true, AppArmor: "mine"},
			Net: berth.Net{
				Networks: []berth.Attachment{{Network: "front"}}, DNS: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, ExtraHosts: []string{"db:10.0.0.7"},
				Ports: []berth.PortSpec{{Protocol: berth.TCP, HostLow: 8080, HostHigh: 8080, Port: 80}, {Protocol: berth.TCP, HostIP: netip.MustParseAddr("127.0.0.1"), Port: 443}},
			},
			Labels: map[string]string{"tier": "1"}, StopSignal: "SIGINT", StopTimeout: &timeout, Restart: berth.Restart{Policy: "on-failure", Retries: 3}, LogMaxSize: 1 << 20,
			Last: berth.Exit{Code: 7, Error: "of an earlier run", Finished: psNow.Add(-time.Hour)}, RestartCount: 2,
		},
		Run: berth.Run{Started: psNow.Add(-5 * time.Minute), First: berth.Running{Pid: 4711}}, State: "running", LogPath: "/var/lib/berth/containers/ab/log",
		Endpoints: []engine.EndpointDetail{{
			Endpoint: berth.Endpoint{
				ID: strings.Repeat("e", 64), Network: psFront.ID, Interface: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24")}, MAC: berth.MAC{2, 0x42, 10, 9, 0, 2},
				Aliases: []string{"www"},
			},
			NetworkName: "front",
			Ports:       []berth.Port{port("::", 8080, 80), port("0.0.0.0", 8081, 81), port("0.0.0.0", 8080, 80), port("0.0.0.0", 9000, 443)},
		}},
	}
	plain := func(name, state string, age time.Duration, mode string) containerDetail {
		return containerDetail{State: state, Container: berth.Container{
			ID: strings.Repeat(name[:1], 64), Name: name, Created: psNow.Add(-age), Rootfs: "host", Process: berth.Process{Command: []string{"true"}}, Net: berth.Net{Mode: mode},
		}}
	}
	made, job, held, again := plain("made", "created", time.Second, "none"), plain("job", "exited", 50*time.Hour, "host"), plain("held", "paused", time.Minute, "container:web"), plain("back", "restarting", 26*24*time.Hour, "none")
	job.Last = berth.Exit{Code: 137, OOM: true, Started: psNow.Add(-50 * time.Hour), Finished: psNow.Add(-49 * time.Hour)}
	held.Run = berth.Run{Started: psNow.Add(-time.Minute), First: berth.Running{Pid: 12}}
	again.Last = berth.Exit{Code: 1, Finished: psNow.Add(-3 * time.Second)}
	return []containerDetail{job, web, made, again, held}
}

// ps runs the flags of "ps" over words.
func ps(t *testing.T, words ...string) (string, error) {
	t.Helper()
	var p psFlags
	var b bytes.Buffer
	cmd := &cobra.Command{Use: "ps", SilenceErrors: true, SilenceUsage: true, RunE: func(*cobra.Command, []string) error {
		rows, err := p.rows(psContainers(), psNow)
		if err != nil {
			return err
		}
		return show(p.list, &b, containerLayout, rows)
	}}
	p.flags(cmd)
	cmd.SetArgs(append([]string{}, words...)) // nil is those of the test itself
	err := cmd.Execute()
	return b.String(), err
}

func TestPs(t *testing.T) {
	const names = "--format {{.Names}}"
	for _, tt := range []struct{ words, want string }{
		{"-a " + names, "made held web job back"},
		{"-q -a", "mmmmmmmmmmmm hhhhhhhhhhhh abababababab jjjjjjjjjjjj bbbbbbbbbbbb"},
		{"-l " + names, "made"},
		{"-n 2 " + names, "made held"},
		{"-n 0 " + names, ""},
		{"-f status=exited " + names, "job"},
		{"-f status=created -f status=paused " + names, "made held"},
		{"-a -f exited=137 " + names, "job"},
		{"-f name=^we " + names, "web"}, {"-f name=/web$ " + names, "web"}, {"-a -f name=a " + names, "made back"}, {"-f name=( " + names, ""},
		{"-f id=abab " + names, "web"}, {"-f label=tier=1 " + names, "web"}, {"-f network=front " + names, "web"}, {"-f network=ffff " + names, "web"}, {"-a -f network=host " + names, "job"},
		{"-f publish=8080 " + names, "web"}, {"-f publish=8000-9000/tcp " + names, "web"}, {"-f publish=8080/udp " + names, ""}, {"-f expose=443 " + names, "web"},
		{"-f id=abab --no-trunc --format {{.Command}}", `"/bin/httpd -f -p 80 --long-option"`},
		{"-f id=abab --format {{.Command}}|{{.Mounts}}|{{.Networks}}|{{.Ports}}|{{.Labels}}|{{.LocalVolumes}}", `"/bin/httpd -f -p 80…"|/srv/a-long-na…|front|0.0.0.0:8080-8081->80-81/tcp, 0.0.0.0:9000->443/tcp, [::]:8080->80/tcp|tier=1|0`},
		{"-a --format {{.Names}}:{{.Status}}:{{.RunningFor}}:{{.State}}", `made:Created:1 second ago:created held:Up About a minute (Paused):About a minute ago:paused web:Up 5 minutes:2 hours ago:running job:Exited (137) 2 days ago:2 days ago:exited back:Restarting (1) 3 seconds ago:3 weeks ago:restarting`},
	} {
		got, err := ps(t, strings.Fields(tt.words)...)
		if err != nil || strings.Join(strings.Split(strings.TrimSpace(got), "\n"), " ") != tt.want {
			t.Errorf("ps %s: got\n%s, %v, want\n%s", tt.words, got, err, tt.want)
		}
	}
	for words, want := range map[string]string{
		"-s": "--size is refused: " + noSizes, "-f nature=x": `--filter "nature=x": KEY=VALUE is wanted, with a key of: ancestor, exited, expose, id, label, name, network, publish, status`,
	} {
		if _, err := ps(t, strings.Fields(words)...); err == nil || flagError(err).Error() != want {
			t.Errorf("ps %s: got %v, want %s", words, err, want)
		}
	}
}

// golden compares with a file of testdata.
func golden(t *testing.T, file, got string) {
	t.Helper()
	file = "testdata/" + file
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if d := cmp.Diff(string(want), got); err != nil || d != "" {
		t.Errorf("%s (go test ./internal/cli -update): %v %s", file, err, d)
	}
}

func TestPsGoldens(t *testing.T) {
	for file, words := range map[string][]string{"ps.txt": nil, "ps-all.txt": {"-a"}, "ps.json": {"--format", "json"}, "ps-template.txt": {"--format", `table {{.Names}}\t{{.Label "tier"}}\t{{.State}}`}} {
		got, err := ps(t, words...)
		if err != nil {
			t.Error(err)
		}
		golden(t, file, got)
	}
}

func TestContainerInspect(t *testing.T) {
	networks := map[string]berth.Network{psFront.ID: psFront}
	for _, c := range psContainers() {
		if c.Name != "web" && c.Name != "job" {
			continue
		}
		var b bytes.Buffer
		if err := inspect(&b, "", []wholeJSON{containerAsJSON(c, networks)}); err != nil {
			t.Fatal(err)
		}
		golden(t, "inspect-"+c.Name+".json", b.String())
	}
	web := containerAsJSON(psContainers()[1], networks)
	for format, want := range map[string]string{
		"{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}": "10.9.0.2",
		"{{.NetworkSettings.Networks.front.Gateway}}":              "10.9.0.1",
		"{{.Id}} {{.Name}}": strings.Repeat("ab", 32) + " /web",
		"{{.State.Status}} {{.State.Running}} {{.State.Pid}}":                     "running true 4711",
		"{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}":                         "268435456 1500000000",
		`{{(index (index .NetworkSettings.Ports "80/tcp") 0).HostPort}}`:          "8080",
		"{{json .Config.Env}}":                                                    `["A=1"]`,
		"{{.Path}} {{join .Args \" \"}}":                                          "/bin/httpd -f -p 80 --long-option",
		"{{range .Mounts}}{{.Type}} {{.Source}} {{.Destination}} {{.RW}};{{end}}": "bind /srv/a-long-name-of-data /data false;tmpfs  /run true;",
	} {
		var b bytes.Buffer
		if err := inspect(&b, format, []wholeJSON{web}); err != nil || strings.TrimSpace(b.String()) != want {
			t.Errorf("%s: got %q, %v, want %q", format, b.String(), err, want)
		}
	}
}

func TestHowLongAgo(t *testing.T) {
	const day = 24 * time.Hour
	for d, want := range map[time.Duration]string{
		0: "Less than a second", -time.Second: "Less than a second", time.Second: "1 second", 59 * time.Second: "59 seconds", time.Minute: "About a minute", 119 * time.Second: "About a minute",
		2 * time.Minute: "2 minutes", 59 * time.Minute: "59 minutes", time.Hour: "About an hour", 2 * time.Hour: "2 hours", 47 * time.Hour: "47 hours", 2 * day: "2 days", 13 * day: "13 days",
		14 * day: "2 weeks", 59 * day: "8 weeks", 60 * day: "2 months", 729 * day: "24 months", 730 * day: "2 years",
	} {
		if got := ago(d); got != want {
			t.Errorf("%v: got %s, want %s", d, got, want)
		}
	}
}
