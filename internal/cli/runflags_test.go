package cli

import (
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"

	"berth"
)

// typed runs the flags of "run" over words, and returns what they wish for.
func typed(words ...string) (berth.Container, error) {
	var r runFlags
	var c berth.Container
	cmd := &cobra.Command{Use: "run", SilenceErrors: true, SilenceUsage: true, RunE: func(_ *cobra.Command, args []string) (err error) {
		c, err = r.container(args)
		return err
	}}
	r.flags(cmd)
	cmd.SetArgs(append([]string{}, words...)) // nil is those of the test itself
	err := cmd.Execute()
	return c, err
}

var sameValues = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
}

func TestRunFlags(t *testing.T) {
	t.Setenv("FROM_HERE", "there")
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	bridge := berth.Net{Networks: []berth.Attachment{{Network: "bridge"}}}
	addr := netip.MustParseAddr
	with := func(change func(*berth.Container)) berth.Container {
		c := berth.Container{Rootfs: "host", Process: berth.Process{Command: []string{"true"}}, Net: bridge}
		change(&c)
		return c
	}
	five := 5
	for _, tt := range []struct {
		words string
		want  berth.Container
	}{
		{"", with(func(*berth.Container) {})},
		{"-it --rm --init --read-only --name web -h web.example.org", with(func(c *berth.Container) {
			c.Process.Stdin, c.Process.Terminal, c.AutoRemove, c.Init, c.ReadOnly = true, true, true, true, true
			c.Name, c.Hostname = "web", "web.example.org"
		})},
		{"-e A=1 -e FROM_HERE -e NOT_HERE -e A=2 -e E=", with(func(c *berth.Container) { c.Process.Env = []string{"A=2", "FROM_HERE=there", "E="} })},
		{"-w /srv -u www-data:33 --group-add adm --group-add 4 --entrypoint /bin/sh", with(func(c *berth.Container) {
			c.Process.Dir, c.Process.User, c.Process.Groups, c.Process.Entrypoint = "/srv", "www-data:33", []string{"adm", "4"}, []string{"/bin/sh"}
		})},
		{"--cap-add cap_net_admin --cap-add NET_ADMIN --cap-drop all --privileged", with(func(c *berth.Container) {
			c.Security = berth.Security{Privileged: true, CapAdd: []string{"NET_ADMIN"}, CapDrop: []string{"ALL"}}
		})},
		{"--security-opt no-new-privileges:true --security-opt seccomp=unconfined --security-opt apparmor=mine", with(func(c *berth.Container) {
			c.Security = berth.Security{NoNewPrivileges: true, Seccomp: "unconfined", AppArmor: "mine"}
		})},
		{"--security-opt seccomp=p.json --security-opt no-new-privileges=false", with(func(c *berth.Container) { c.Security.Seccomp = filepath.Join(here, "p.json") })},
		{"-v ./x:/y -v /a:/b/:ro,rslave --tmpfs /run:size=3m,exec --mount type=bind,src=/s,dst=/d,readonly,bind-recursive=disabled", with(func(c *berth.Container) {
			c.Mounts = []berth.Mount{
				{Type: "bind", Source: filepath.Join(here, "x"), Target: "/y", Make: true},
				{Type: "bind", Source: "/a", Target: "/b", Make: true, Options: []string{"ro", "rslave"}},
				{Type: "bind", Source: "/s", Target: "/d", Options: []string{"bind", "ro"}},
				{Type: "tmpfs", Target: "/run", Options: []string{"size=3m", "exec"}},
			}
		})},
		{"--mount type=tmpfs,target=/t,tmpfs-size=1m,tmpfs-mode=700", with(func(c *berth.Container) {
			c.Mounts = []berth.Mount{{Type: "tmpfs", Target: "/t", Options: []string{"size=1048576", "mode=700"}}}
		})},
		{"--device /dev/fuse --device /dev/sda:/dev/xvda:r --device /dev/kvm:rw --shm-size 1g", with(func(c *berth.Container) {
			c.Devices, c.ShmSize = []berth.Device{{Source: "/dev/fuse", Target: "/dev/fuse", Permissions: "rwm"}, {Source: "/dev/sda", Target: "/dev/xvda", Permissions: "r"}, {Source: "/dev/kvm", Target: "/dev/kvm", Permissions: "rw"}}, 1<<30
		})},
		{"--ulimit nofile=1024:4096 --ulimit core=-1 --ulimit nofile=10 --sysctl net.ipv4.ip_forward=1", with(func(c *berth.Container) {
			c.Process.Ulimits = []berth.Ulimit{{Name: "core", Soft: -1, Hard: -1}, {Name: "nofile", Soft: 10, Hard: 10}}
			c.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		})},
		{"--stop-signal rtmin+3 --stop-timeout 5 --restart on-failure:3 -l a=b -l c --log-driver k8s-file --log-opt max-size=10m --pid container:web", with(func(c *berth.Container) {
			c.StopSignal, c.StopTimeout, c.Restart, c.PidMode = "37", &five, berth.Restart{Policy: "on-failure", Retries: 3}, "container:web"
			c.Labels, c.LogMaxSize = map[string]string{"a": "b", "c": ""}, 10<<20
		})},
		{"-m 256m --memory-swap -1 --memory-reservation 128MiB --cpus 1.5 -c 512 --cpuset-cpus 0-1 --cpuset-mems 0 --pids-limit 100 --blkio-weight 500", with(func(c *berth.Container) {
			c.Limits = berth.Limits{
				Memory: 256 << 20, MemorySwap: -1, MemoryReservation: 128 << 20, NanoCPUs: 15e8, CPUShares: 512, CPUs: "0-1", Mems: "0", Pids: 100, BlkioWeight: 500,
			}
		})},
		{"--cpu-period 50000 --cpu-quota 25000 --device-read-bps /dev/sda:1mb --device-write-bps /dev/sdb:2k --pids-limit -1", with(func(c *berth.Container) {
			c.Limits = berth.Limits{
				CPUPeriod: 50000, CPUQuota: 25000, DeviceReadBps: []berth.Throttle{{Device: "/dev/sda", Rate: 1 << 20}}, DeviceWriteBps: []berth.Throttle{{Device: "/dev/sdb", Rate: 2048}}, Pids: -1,
			}
		})},
		{"--net none", with(func(c *berth.Container) { c.Net = berth.Net{Mode: "none"} })},
		{"--network ns:/run/netns/a=b", with(func(c *berth.Container) { c.Net = berth.Net{Mode: "ns:/run/netns/a=b"} })},
		{"--network default --ip 10.0.0.7 --net-alias db --mac-address 02:42:ac:11:00:02", with(func(c *berth.Container) {
			c.Net.Networks = []berth.Attachment{{Network: "bridge", IP4: addr("10.0.0.7"), Aliases: []string{"db"}, MAC: berth.MAC{2, 0x42, 0xac, 0x11, 0, 2}}}
		})},
		{"--network name=front,ip=10.0.0.7,alias=a,alias=b,gw-priority=-3,driver-opt=com.docker.network.endpoint.ifname=eth7 --network back --ip6 fd00::7", with(func(c *berth.Container) {
			c.Net.Networks = []berth.Attachment{
				{Network: "front", IP4: addr("10.0.0.7"), IP6: addr("fd00::7"), Aliases: []string{"a", "b"}, GwPriority: -3, Interface: "eth7"}, {Network: "back"},
			}
		})},
		{"--network name=front,rate-in=10mbit,rate-out=512kbit,burst=64kb", with(func(c *berth.Container) {
			c.Net.Networks = []berth.Attachment{{Network: "front", Rates: berth.Rates{In: berth.Rate{Bits: 10e6, Burst: 64 << 13}, Out: berth.Rate{Bits: 512e3, Burst: 64 << 13}}}}
		})},
		{"-p 8888:80 -P --expose 53/udp", with(func(c *berth.Container) {
			c.Net.Ports = []berth.PortSpec{{Protocol: berth.TCP, HostLow: 8888, HostHigh: 8888, Port: 80}, {Protocol: berth.UDP, Port: 53}}
			c.Net.Exposed = []string{"53/udp"}
		})},
		{"--expose /srv/data/ --expose /home", with(func(c *berth.Container) { c.Expose = []string{"/srv/data", "/home"} })},
		{"--dns 192.0.2.53 --dns-search example.org --dns-search . --dns-opt ndots:2 --add-host db:10.0.0.7 --add-host six=[fd00::7] --add-host h:host-gateway", with(func(c *berth.Container) {
			c.Net.DNS, c.Net.DNSSearch, c.Net.DNSOptions = []netip.Addr{addr("192.0.2.53")}, []string{"example.org", "."}, []string{"ndots:2"}
			c.Net.ExtraHosts = []string{"db:10.0.0.7", "six:fd00::7", "h:host-gateway"}
		})},
	} {
		t.Run(tt.words, func(t *testing.T) {
			got, err := typed(append(strings.Fields(tt.words), "--rootfs", "host", "true")...)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got, sameValues...); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestWordsBehindTheFirstAreTheCommand(t *testing.T) {
	c, err := typed("--rootfs", "host", "ls", "-l", "--rm")
	if err != nil || c.AutoRemove || !cmp.Equal(c.Process.Command, []string{"ls", "-l", "--rm"}) {
		t.Errorf("got %v, %v", c.Process, err)
	}
}

func TestRunFlagsRefuse(t *testing.T) {
	for _, tt := range []struct{ words, want string }{
		{"--pull often nginx", `--pull "often": always, missing or never is wanted`},
		{"--platform linux/arm64 --rootfs host x", "--platform: with --rootfs there is no image"},
		{"", "no image: name one behind the flags, or give --rootfs DIR or --rootfs host"},
		{"--rootfs host", "no command: say what to run behind the flags"},
		{"--gpus all nginx", "--gpus is refused: no driver is handed in: --device names nodes one by one"},
		{"--health-cmd", "--health-cmd is refused: nothing of Berth runs that could look after a container"},
		{"--rootfs host --rm --restart always x", "--rm: what is removed when it has ended cannot be started again: give --restart or --rm"},
		{"--rootfs host --restart always:3 x", `--restart "always:3": a number of times goes with on-failure only`},
		{"--rootfs host --restart never x", `--restart "never": no, always, unless-stopped or on-failure[:TIMES] is wanted`},
		{"--rootfs host -v data:/data x", `-v "data:/data": "data" is no path of the host: volumes are not kept: give a path of the host, as ./data`},
		{"--rootfs host -v /data x", `-v "/data": volumes are not kept: give a path of the host, as /srv/data:/data`},
		{"--rootfs host -v /data:/data:z x", `-v "/data:/data:z": z is refused: Berth gives files no SELinux labels`},
		{"--rootfs host -v /a:/ x", `-v "/a:/": "/": the place of the root file system is taken: give --rootfs`},
		{"--rootfs host --mount target=/x x", `--mount "target=/x": volumes are not kept: give a path of the host, with type=bind, or say type=tmpfs`},
		{"--rootfs host --mount type=bind,target=/x x", `--mount "type=bind,target=/x": source=PATH is missing`},
		{"--rootfs host -m x x", `--memory "x": a size is wanted, as 64m or 1.5g`},
		{"--rootfs host --network none --network a x", "--network none: it goes with no other --network"},
		{"--rootfs host --network a --network a x", "--network a: it was named twice"},
		{"--rootfs host --network host -p 80:80 x", "--publish: with --network host its ports are the host's"},
		{"--rootfs host --network none --ip 10.0.0.1 x", "--ip: with --network none there is no network to have it on"},
		{"--rootfs host --network container:a -h b x", "--hostname: with --network container:a it is that container's"},
		{"--rootfs host --network name=a,ip=10.0.0.1 --ip 10.0.0.2 x", "--ip: --network name=a says it already"},
		{"--rootfs host --network name=a,foo=b x", `--network "name=a,foo=b": no key "foo": name, alias, ip, ip6, mac-address, gw-priority, rate-in, rate-out, burst or driver-opt is wanted`},
		{"--rootfs host --expose 80 x", "--expose 80: neighbours reach every port, and without an image nobody asks for a list: it goes with --publish-all"},
		{"--rootfs host -P x", "--publish-all: no image says which ports there are: give --expose PORT too"},
		{"--rootfs /srv/root --expose /home x", "--expose /home: a path goes with --rootfs host; -v /home:/home opens it here"},
		{"--rootfs host --log-driver json-file x", `--log-driver "json-file" is refused: the monitor writes k8s-file`},
		{"--rootfs host --log-opt max-file=3 x", `--log-opt "max-file=3" is refused: max-size=SIZE is the one there is; one file is kept`},
		{"--rootfs host --security-opt label=disable x", `--security-opt "label=disable": refused: Berth gives processes no SELinux labels`},
		{"--rootfs host -e =x x", `-e "=x": NAME=VALUE is wanted, or a NAME that is set here`},
		{"--rootfs host --pid private x", `--pid "private": host or container:NAME is wanted`},
		{"--rootfs host --name -a x", `invalid container name "-a": a name starts with a letter or digit`},
		{"--rootfs host --add-host x x", `--add-host "x": NAME:ADDRESS is wanted, as db:10.0.0.7, or NAME:host-gateway`},
		{"--rootfs host --stop-signal FOO x", `--stop-signal "FOO": a signal is wanted, as TERM, SIGHUP or 9`},
	} {
		t.Run(tt.words, func(t *testing.T) {
			_, err := typed(strings.Fields(tt.words)...)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got  %v\nwant %s", err, tt.want)
			}
		})
	}
}

func TestEnvFile(t *testing.T) {
	lookup := func(name string) (string, bool) { return "looked up", name == "THERE" }
	got, err := parseEnvFile([]byte("\ufeff# head\nA=\"q\"\n\n  B=1 \r\nTHERE\nMISSING\nC=\n\t# x\nD=a=b"), lookup)
	if d := cmp.Diff([]string{`A="q"`, "B=1 ", "THERE=looked up", "C=", "D=a=b"}, got); err != nil || d != "" {
		t.Error(err, d)
	}
	for text, want := range map[string]string{
		"A=1\n=x": `line 2: a name is missing before the "="`, "A B=1": `line 1: "A B": a name has no blanks`, "\xff": "line 1: it is no text", "A=\x00": "line 1: it is no text",
	} {
		if _, err := parseEnvFile([]byte(text), lookup); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", text, err, want)
		}
	}
}

func TestFilesOfVariablesAndLabels(t *testing.T) {
	dir := t.TempDir()
	env, labels := filepath.Join(dir, "env"), filepath.Join(dir, "labels")
	for name, text := range map[string]string{env: "A=file\nB=file\n", labels: "alone\na=b c\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c, err := typed("--rootfs", dir, "--env-file", env, "-e", "A=typed", "--label-file", labels, "-l", "a=typed", "true")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"A=typed", "B=file"}, c.Process.Env); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(map[string]string{"alone": "", "a": "typed"}, c.Labels); d != "" {
		t.Error(d)
	}
	if _, err := typed("--rootfs", dir, "--env-file", filepath.Join(dir, "none"), "true"); err == nil || !strings.HasPrefix(err.Error(), "--env-file: open ") {
		t.Errorf("got %v", err)
	}
}

func TestUpdateTouchesWhatWasTyped(t *testing.T) {
	var u updateFlags
	cmd := &cobra.Command{Use: "update"}
	u.flags(cmd)
	if err := cmd.ParseFlags([]string{"--memory", "0", "--pids-limit", "7", "--cpuset-cpus", "", "--device-read-bps", "/dev/sda:2m", "--device-read-bps", "/dev/sdb:0"}); err != nil {
		t.Fatal(err)
	}
	rates := []berth.Throttle{{Device: "/dev/sda", Rate: 1 << 20}, {Device: "/dev/sdb", Rate: 1 << 20}, {Device: "/dev/sdc", Rate: 1 << 20}}
	before := slices.Clone(rates)
	l := berth.Limits{Memory: 1 << 30, CPUs: "0", NanoCPUs: 1e9, Pids: 5, DeviceReadBps: rates, DeviceWriteBps: rates[:1]}
	if err := u.apply(&l); err != nil {
		t.Fatal(err)
	}
	want := berth.Limits{
		NanoCPUs: 1e9, Pids: 7, DeviceWriteBps: rates[:1],
		DeviceReadBps: []berth.Throttle{{Device: "/dev/sdc", Rate: 1 << 20}, {Device: "/dev/sda", Rate: 2 << 20}},
	}
	if d := cmp.Diff(want, l); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff(before, rates); d != "" {
		t.Errorf("what was before has changed: %s", d)
	}
}
