package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCnitool is what a person does with the specification's own tool: the
// port answers from outside, and after del nothing is left.
func TestCnitool(t *testing.T) {
	n := newNode(t)
	n.must(t, `ip link set up1 up && mkdir -p /run/net.d && cat >/run/net.d/10-front.conflist <<END
{"cniVersion": "1.1.0", "name": "front", "plugins": [{"type": "berth", "subnets": ["10.1.0.0/24"], "run": "/run/b", "root": "/run/broot", "capabilities": {"portMappings": true}}]}
END
ip netns add web && ip netns add lan && ip link set up1 netns lan && ip -n lan addr add 192.0.2.9/24 dev up1 && ip -n lan link set up1 up`)
	n.must(t, "berth cni install --dir /run/cni/bin")
	env := []string{"CNI_PATH=/run/cni/bin", "NETCONFPATH=/run/net.d", `CAP_ARGS={"portMappings": [{"hostPort": 8888, "containerPort": 80, "protocol": "tcp"}]}`}
	n.must(t, "cnitool status front /run/netns/web", env...)
	out := n.must(t, "cnitool add front /run/netns/web", env...)
	if !contains(out, "10.1.0.2/24") {
		t.Errorf("add: %s", out)
	}
	n.must(t, "cnitool check front /run/netns/web && cnitool status front /run/netns/web", env...)
	n.must(t, `(echo hello | ip netns exec web nc -l -p 80 -q 0 -w 20 >/dev/null) & until ip netns exec web ss -Hltn | grep -q :80; do :; done
test "$(ip netns exec lan nc -d -w 5 192.0.2.1 8888 </dev/null)" = hello; wait`)
	n.must(t, "cnitool del front /run/netns/web && cnitool del front /run/netns/web", env...)
	n.must(t, "cnitool gc front /run/netns/web", env...)
	n.must(t, `export BERTH_RUN=/run/b BERTH_ROOT=/run/broot; berth check && test -z "$(berth network ls -q)$(berth sandbox ls -q)"; ip netns del lan; until ! ip netns list | grep -q lan; do :; done`)
}

// TestInstall puts the plugin and configurations in place. What is not Berth's
// stays, unless it is forced.
func TestInstall(t *testing.T) {
	n := newNode(t)
	fails := func(script, words string) {
		t.Helper()
		if out, err := n.sh(script); err == nil || !strings.Contains(out, words) {
			t.Errorf("%s: %v, %s; want %q", script, err, out, words)
		}
	}
	says := func(script, want string) {
		t.Helper()
		if out := n.must(t, script); out != want {
			t.Errorf("%s: %q, want %q", script, out, want)
		}
	}
	const install, conflist = "berth cni install --dir /run/cni/bin", "berth cni conflist --conf-dir /run/net.d --write front"
	says(install, "/run/cni/bin/berth\n")
	says(install, "/run/cni/bin/berth\n")
	says("CNI_COMMAND=VERSION /run/cni/bin/berth </dev/null | tr -d ' \n'; stat -c %a /run/cni/bin/berth; ls -A /run/cni/bin",
		`{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}`+"755\nberth\n")
	says("berth cni ls --dir /run/cni/bin --conf-dir /run/net.d -q", "/run/cni/bin/berth\n")
	says("berth cni uninstall --dir /run/cni/bin", "/run/cni/bin/berth\n")
	fails("berth cni uninstall --dir /run/cni/bin", "not found")
	n.must(t, "echo theirs >/run/cni/bin/berth")
	fails(install, "not Berth's")
	fails("berth cni uninstall --dir /run/cni/bin", "not Berth's")
	says("cat /run/cni/bin/berth", "theirs\n")
	says(install+" --force", "/run/cni/bin/berth\n")
	// Being executed is no obstacle.
	n.must(t, "mkfifo /run/in && exec 3<>/run/in && { CNI_COMMAND=STATUS /run/cni/bin/berth <&3 & } && "+install+" && kill $!")
	fails("mkdir -p /run/d/berth && berth cni install --force --dir /run/d", "not Berth's")

	fails(conflist, "no such network")
	n.must(t, "berth network create --subnet 10.1.0.0/24 front && mkdir /run/net.d && echo '{}' >/run/net.d/10-front.conflist")
	fails(conflist, "not Berth's")
	fails("berth cni conflist --cni-version 7 front", "there are 0.3.0")
	says(conflist+" --force", "/run/net.d/10-front.conflist\n")
	says(conflist, "/run/net.d/10-front.conflist\n")
	says("berth cni ls --dir /run/cni/bin --conf-dir /run/net.d --format '{{.Kind}} {{.Network}}'", "plugin \nconflist front\n")
	n.must(t, `ip netns add web; export NETCONFPATH=/run/net.d CNI_PATH=/run/cni/bin; cnitool add front /run/netns/web && cnitool check front /run/netns/web && cnitool del front /run/netns/web && test "$(cat /run/net.d/10-front.conflist)" = "$(berth cni conflist front)"`)
	n.clean(t)
}

// program is an IPAM plugin: what it is asked goes into a file, and what it
// answers is a function of its configuration's key "say".
const program = `#!/bin/sh
conf=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $CNI_IFNAME $CNI_NETNS" >>/run/asked
case "$CNI_COMMAND $conf" in
"ADD "*fail*|"CHECK "*fail*|"STATUS "*fail*) echo '{"code": 142, "msg": "no lease", "details": "the server is away"}'; exit 1 ;;
"ADD "*garbage*) echo hello ;;
"ADD "*elsewhere*) echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.5.0.9/24"}]}' ;;
"ADD "*route*) echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.9/24"}], "routes": [{"dst": "10.9.0.0/16"}]}' ;;
"ADD "*) echo '{"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.9/24", "gateway": "10.1.0.254"}], "routes": [{"dst": "0.0.0.0/0"}], "dns": {"nameservers": ["10.1.0.3"]}}' ;;
esac
`

// TestDelegate lets a program give the addresses. It is asked with the same
// environment and configuration, and told of everything that is not to be.
func TestDelegate(t *testing.T) {
	n := newNode(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "lease"), []byte(program), 0o755); err != nil {
		t.Fatal(err)
	}
	conf := func(say string) string {
		return fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "front", "type": "berth", "ipam": {"type": "lease", "say": %q, "own": {"keys": 1}}}`, say)
	}
	web := n.pod(t, "web", conf("well"))
	web.path = "/nowhere:" + dir
	asked := func(want ...string) {
		t.Helper()
		got := strings.Fields(n.must(t, "test ! -f /run/asked || cut -d' ' -f1 /run/asked; rm -f /run/asked"))
		if strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("it was asked %q, want %q", got, want)
		}
	}
	n.silent(t, web.as("STATUS"))
	asked("STATUS")
	out := n.ok(t, web.as("ADD"))
	asked("ADD")
	if !contains(out, "10.1.0.9/24", `"gateway": "10.1.0.254"`, "10.1.0.3") {
		t.Errorf("the program's answer is not in %s", out)
	}
	n.must(t, "ip netns exec web ping -c1 -W1 10.1.0.254")
	n.silent(t, web.as("CHECK").with(t, "prevResult", out))
	n.silent(t, web.as("GC").with(t, "cni.dev/valid-attachments", `[{"containerID": "web", "ifname": "eth0"}]`))
	n.silent(t, web.as("DEL"))
	n.silent(t, web.as("DEL"))
	asked("CHECK", "GC", "DEL", "DEL")

	// Whatever fails, the address goes back, and nothing is connected.
	for say, tt := range map[string]struct {
		code  uint
		words string
	}{
		"fail": {142, "the server is away"}, "garbage": {6, "lease"}, "elsewhere": {7, "10.5.0.0/24"}, "route": {2, "10.9.0.0/16"},
	} {
		a := web
		a.conf = conf(say)
		n.refused(t, a.as("ADD"), tt.code, tt.words)
		asked("ADD", "DEL")
	}
	bad := web
	bad.conf = conf("fail")
	n.refused(t, bad.as("STATUS"), 142, "no lease")
	// A port that is taken: the address goes back too.
	n.must(t, "berth sandbox create other && berth network connect front other && berth publish other 8888:80 && rm -f /run/asked")
	n.refused(t, web.with(t, "runtimeConfig", `{"portMappings": [{"hostPort": 8888, "containerPort": 80}]}`).as("ADD"), 101, "other")
	asked("ADD", "DEL")
	// The address is somebody's.
	n.must(t, "berth sandbox create third && berth network connect --ip 10.1.0.9 front third")
	n.refused(t, web.as("ADD"), 101, "third")
	asked("ADD", "DEL")
	n.must(t, "berth sandbox rm other third && berth check && test -z \"$(ip -n web -o link show type veth)\"")
	n.clean(t)
}

// TestStatus says why an ADD would fail.
func TestStatus(t *testing.T) {
	n := newNode(t)
	small := ask{command: "STATUS", conf: `{"cniVersion": "1.1.0", "name": "small", "type": "berth", "subnets": ["10.1.0.0/29"]}`}
	n.silent(t, small)
	taken := small
	taken.conf = strings.Replace(small.conf, "10.1.0.0/29", "192.0.2.0/24", 1)
	n.refused(t, taken, 50, "192.0.2.0/24")
	n.must(t, "berth network create --subnet 10.1.0.0/29 small")
	n.silent(t, small)
	other := small
	other.conf = strings.Replace(small.conf, "10.1.0.0/29", "10.2.0.0/29", 1)
	n.refused(t, other, 50, "10.2.0.0/29")
	n.must(t, "for i in 1 2 3 4 5; do berth sandbox create s$i && berth network connect small s$i; done")
	n.refused(t, small, 50, "exhausted")
	// An address whose namespace is gone is free.
	n.must(t, "ip netns del s3")
	n.silent(t, small)
	n.must(t, "berth reconcile; sysctl -q -w net.ipv4.ip_forward=0")
	n.refused(t, small, 51, "ip_forward")
	n.must(t, "berth reconcile && ip link del bt-small")
	n.refused(t, small, 51, "bt-small")
	n.must(t, "berth reconcile && nft flush ruleset")
	n.refused(t, small, 51, "table")
	n.must(t, "berth reconcile && cp /run/berth/berth.db /run/kept && echo garbage >/run/berth/berth.db")
	n.refused(t, small, 50, "berth.db")
	n.must(t, "cp /run/kept /run/berth/berth.db && berth sandbox ls -q | xargs berth sandbox rm")
	n.clean(t)
}

// TestBehindAnother comes second in a chain: on a bridge that another plugin
// made it adds a port and a limit, passes the result on, and leaves the link
// alone.
func TestBehindAnother(t *testing.T) {
	n := newNode(t)
	n.must(t, `ip link add cni0 type bridge && ip addr add 10.5.0.1/24 dev cni0 && ip link set cni0 up && ip netns add web && ip netns add lan
ip link add veth7 type veth peer name eth0 netns web && ip link set veth7 master cni0 up && ip -n web addr add 10.5.0.7/24 dev eth0 && ip -n web link set eth0 up && ip -n web link set lo up && ip -n web route add default via 10.5.0.1
ip link set up1 netns lan && ip -n lan addr add 192.0.2.9/24 dev up1 && ip -n lan link set up1 up`)
	const look = "ip -o link show veth7; ip -o link show cni0; ip -o addr show cni0; ip -n web -o addr; ip -n web route"
	before := n.must(t, look)
	prev := `{"cniVersion": "1.0.0", "interfaces": [{"name": "cni0"}, {"name": "veth7"}, {"name": "eth0", "sandbox": "/run/netns/web"}], "ips": [{"address": "10.5.0.7/24", "gateway": "10.5.0.1", "interface": 2}], "dns": {"domain": "kept"}}`
	web := ask{container: "web", netns: "/run/netns/web", ifname: "eth0", conf: `{"cniVersion": "1.0.0", "name": "chain", "type": "berth", "prevResult": ` + prev + `,
		"runtimeConfig": {"portMappings": [{"hostPort": 8888, "containerPort": 80}], "bandwidth": {"ingressRate": 8000000}}}`}
	out := n.ok(t, web.as("ADD"))
	if !contains(out, "cni0", "veth7", "10.5.0.7/24", "kept") {
		t.Errorf("the result before is not passed on: %s", out)
	}
	n.must(t, `tc qdisc show dev veth7 | grep -q 8Mbit; (echo hello | ip netns exec web nc -l -p 80 -q 0 -w 20 >/dev/null) & until ip netns exec web ss -Hltn | grep -q :80; do :; done
test "$(ip netns exec lan nc -d -w 5 192.0.2.1 8888 </dev/null)" = hello; wait`)
	n.refused(t, web.as("ADD"), 100, "already")
	n.silent(t, web.as("CHECK").with(t, "prevResult", out))
	n.silent(t, web.as("DEL"))
	n.silent(t, web.as("DEL"))
	if after := n.must(t, look); after != before {
		t.Errorf("it is %swas %s", after, before)
	}
	n.must(t, "berth check && berth network rm chain && ip netns del lan")
}
