package main

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// reference is where Debian's package has the reference plugins.
const reference = "/usr/lib/cni"

// scenario runs configurations written for the reference plugins, and says what
// can be seen of it: results, files, and who reaches whom. DIR is where the
// plugins are.
const scenario = `
export CNI_PATH=DIR NETCONFPATH=/run/net.d
mkdir -p /run/net.d && mount -t tmpfs none /var/lib && mkdir -p /var/lib/berth
ip netns add a; ip netns add b; ip netns add lan
ip link set up1 netns lan && ip -n lan addr add 192.0.2.9/24 dev up1 && ip -n lan link set up1 up && ip -n lan link set lo up
ip -n lan route add 10.22.0.0/24 via 192.0.2.1; ip -n lan route add 10.23.0.0/24 via 192.0.2.1
write() { echo "{\"cniVersion\":\"$2\",\"name\":\"$1\",\"plugins\":[$3]}" >/run/net.d/$1.conflist; }
ports() { export CAP_ARGS="{\"portMappings\":[{\"hostPort\":$1,\"containerPort\":80,\"protocol\":\"tcp\"}]}"; }
PIDS=
cat >/run/serve.py <<'END'
import socket, sys
s = socket.create_server(('', int(sys.argv[1])))
while True:
    c, peer = s.accept()
    c.send((peer[0] + '\n').encode())
    c.close()
END
serve() { ip netns exec $1 python3 /run/serve.py $2 & PIDS="$PIDS $!"; until ip netns exec $1 ss -Hltn | grep -q ":$2 "; do :; done; }
get() { printf '%s reaches %s: ' $1 $2:$3; ip netns exec $1 nc -d -w 1 $2 $3 || echo no; }
host() { printf 'host reaches %s: ' $1:$2; nc -d -w 1 $1 $2 || echo no; }
inside() { ip -n a -o addr show eth0 | grep -o 'inet [^ ]*'; ip -n a route | sed 's/ proto [^ ]*//; s/ *$//'; ip -n a -o link show eth0 | grep -o 'mtu [0-9]*'; ip -o addr show dev $1 2>/dev/null | grep -o 'inet [^ ]*'; cat /proc/sys/net/ipv4/ip_forward; }
gone() { ls /var/lib/cni/networks/$1; ip -n a -o link show eth0 2>&1 | grep -c 'does not exist'; ip -o link | grep -c 'veth\|bwp\|-out'; tc qdisc | grep -c tbf; }
serve lan 99

IPAM='"ipam":{"type":"host-local","subnet":"10.22.0.0/24","rangeStart":"10.22.0.10","routes":[{"dst":"0.0.0.0/0"}]}'
write br 1.0.0 '{"type":"bridge","bridge":"mybr0","isGateway":true,"ipMasq":true,"hairpinMode":true,"mtu":1400,'"$IPAM"',"dns":{"nameservers":["10.22.0.1"],"search":["x"]}},{"type":"portmap","capabilities":{"portMappings":true}},{"type":"firewall"},{"type":"bandwidth","ingressRate":80000000,"ingressBurst":8000000,"egressRate":80000000,"egressBurst":8000000},{"type":"tuning","sysctl":{"net.core.somaxconn":"501"},"promisc":true}'
ports 8080; cnitool add br /run/netns/a; ports 8081; cnitool add br /run/netns/b
inside mybr0; ip netns exec a cat /proc/sys/net/core/somaxconn; ls /var/lib/cni/networks/br; tc qdisc | grep -o 'rate [^ ]*'
serve a 80; serve b 80
get lan 192.0.2.1 8080; get lan 192.0.2.1 8081; get lan 10.22.0.10 80; host 127.0.0.1 8080; host 192.0.2.1 8081; host 10.22.0.10 80
get a 192.0.2.1 8080; get a 10.22.0.11 80; get a 192.0.2.9 99
ports 8080; cnitool add br /run/netns/a >/dev/null 2>&1 || echo twice is an error
cnitool del br /run/netns/a && cnitool del br /run/netns/a && echo deleted
get lan 192.0.2.1 8080
ports 8081; cnitool del br /run/netns/b && echo deleted
gone br; kill $PIDS; PIDS=; serve lan 99

IPAM='"ipam":{"type":"host-local","ranges":[[{"subnet":"10.23.0.0/24"}],[{"subnet":"fd00:23::/64"}]],"routes":[{"dst":"0.0.0.0/0"},{"dst":"::/0"}]}'
write pp 0.4.0 '{"type":"ptp","ipMasq":true,'"$IPAM"'},{"type":"portmap","capabilities":{"portMappings":true},"snat":true}'
ports 8080; cnitool add pp /run/netns/a; ports 8081; cnitool add pp /run/netns/b
inside none; serve a 80; serve b 80
get lan 192.0.2.1 8080; get lan 192.0.2.1 8081; get lan 10.23.0.2 80; host 127.0.0.1 8080; host 192.0.2.1 8081; host 10.23.0.2 80
get a 192.0.2.1 8080; get a 10.23.0.3 80; get a 192.0.2.9 99
ports 8080; cnitool del pp /run/netns/a && cnitool del pp /run/netns/a && echo deleted
ports 8081; cnitool del pp /run/netns/b && echo deleted
gone pp; kill $PIDS; PIDS=; unset CAP_ARGS

write l2 0.3.1 '{"type":"bridge","bridge":"l2br"}'
cnitool add l2 /run/netns/a; cnitool check l2 /run/netns/a 2>/dev/null || echo no CHECK; cnitool del l2 /run/netns/a
write own 1.0.0 '{"type":"bridge","bridge":"ownbr","isDefaultGateway":true,"promiscMode":true,"ipam":{"type":"host-local","subnet":"10.24.0.0/24","gateway":"10.24.0.254","ranges":[[{"subnet":"10.25.0.0/29"}]]}}'
cnitool add own /run/netns/a 2>&1; ip -n a link del eth0 2>/dev/null # the reference leaves it
ip -o addr show dev ownbr | grep -o 'inet [^ ]*'
write own 1.0.0 '{"type":"bridge","bridge":"ownbr","isDefaultGateway":true,"promiscMode":true,"ipam":{"type":"host-local","subnet":"10.24.0.0/24","gateway":"10.24.0.254"}}'
cnitool add own /run/netns/b; ip -o addr show dev ownbr | grep -o 'inet [^ ]*'; ip -n b route | sed 's/ proto [^ ]*//; s/ *$//'; ip -d -o link show ownbr | grep -c 'promiscuity 1'
cnitool check own /run/netns/b && echo checked; ip -n b addr flush dev eth0; cnitool check own /run/netns/b >/dev/null 2>&1 || echo differs
cnitool del own /run/netns/b; gone own
write own 1.0.0 '{"type":"bridge","bridge":"ownbr","isGateway":true,"promiscMode":true,"ipam":{"type":"host-local","subnet":"10.26.0.0/24"}}'
cnitool add own /run/netns/b 2>&1 | grep -o 'already has an IP address different from.*'
ip -n b link del eth0 2>/dev/null; cnitool del own /run/netns/b
write own 1.0.0 '{"type":"bridge","bridge":"ownbr","isGateway":true,"forceAddress":true,"promiscMode":true,"ipam":{"type":"host-local","subnet":"10.26.0.0/24"}}'
cnitool add own /run/netns/b >/dev/null && ip -o addr show dev ownbr | grep -o 'inet [^ ]*'; cnitool del own /run/netns/b
write loop 1.0.0 '{"type":"loopback"}'
CNI_IFNAME=lo cnitool add loop /run/netns/a && ip -n a -o link show lo | grep -o 'LOOPBACK,UP' && CNI_IFNAME=lo cnitool del loop /run/netns/a
for n in a b lan; do ip netns del $n; done; ip link del mybr0; ip link del l2br; ip link del ownbr
umount /var/lib
`

// varies is what two runs of one plugin do not have in common.
var varies = []struct {
	what *regexp.Regexp
	is   string
}{
	{regexp.MustCompile(`([0-9a-f]{2}:){5}[0-9a-f]{2}`), "MAC"},
	{regexp.MustCompile(`veth[0-9a-f]{8}`), "veth"},
	{regexp.MustCompile(`bwp[0-9a-f]+|bt[0-9a-f]{8}-out`), "ifb"},
}

// TestDropInBesideReference runs the same configurations with Debian's plugins
// and with the links, each on a host of its own. What can be seen must be the
// same.
func TestDropInBesideReference(t *testing.T) {
	if _, err := os.Stat(reference + "/bridge"); err != nil {
		t.Skip("needs the package containernetworking-plugins")
	}
	see := func(n *node, dir string) string {
		out := n.must(t, strings.ReplaceAll(scenario, "DIR", dir)+"\ntrue")
		for _, v := range varies {
			out = v.what.ReplaceAllString(out, v.is)
		}
		return out
	}
	n := newNode(t)
	n.must(t, "berth cni install --drop-in --dir /run/cni/bin")
	ours, theirs := see(n, "/run/cni/bin"), see(newNode(t), reference)
	if ours == theirs {
		return
	}
	a, b := strings.Split(ours, "\n"), strings.Split(theirs, "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			t.Errorf("line %d: %q, the reference %q\nours:\n%s\nthe reference:\n%s", i, a[i], b[i], ours, theirs)
			return
		}
	}
	t.Errorf("ours:\n%s\nthe reference:\n%s", ours, theirs)
}

// policies sets two networks of two pods each apart.
const policies = `
export CNI_PATH=DIR NETCONFPATH=/run/net.d; mkdir -p /run/net.d
cat >/run/serve.py <<'END'
import socket
s = socket.create_server(('', 80))
while True:
    c, _ = s.accept()
    c.send(b'hello\n')
    c.close()
END
ip netns add lan; ip link set up1 netns lan && ip -n lan addr add 192.0.2.9/24 dev up1 && ip -n lan link set up1 up; ip -n lan route add 10.88.0.0/16 via 192.0.2.1
for i in 3 4; do cat >/run/net.d/n$i.conflist <<END
{"cniVersion":"1.0.0","name":"n$i","plugins":[{"type":"bridge","bridge":"n$i","isGateway":true,"ipMasq":true,"hairpinMode":true,"ipam":{"type":"host-local","dataDir":"/run/ips","routes":[{"dst":"0.0.0.0/0"}],"ranges":[[{"subnet":"10.88.$i.0/24","gateway":"10.88.$i.1"}]]}},
{"type":"firewall","backend":"iptables","ingressPolicy":"POLICY"}]}
END
for j in a b; do ip netns add $j$i; cnitool add n$i /run/netns/$j$i >/dev/null; ip netns exec $j$i python3 /run/serve.py & PIDS="$PIDS $!"; until ip netns exec $j$i ss -Hltn | grep -q :80; do :; done; done; done
get() { ip netns exec $1 nc -d -w 1 $2 80 >/dev/null && echo $1 $2; }
get a3 10.88.3.3; get b4 10.88.4.2; get a3 10.88.4.2; get b4 10.88.3.2; get lan 10.88.3.2
for i in 3 4; do for j in a b; do cnitool del n$i /run/netns/$j$i; ip netns del $j$i; done; ip link del n$i; done
kill $PIDS; ip netns del lan
test -z "$(nft list tables | grep berth)"
`

// TestIngressPolicy holds the policies of the plugin firewall against who
// reaches whom.
func TestIngressPolicy(t *testing.T) {
	for policy, want := range map[string]string{
		"open":        "a3 10.88.3.3\nb4 10.88.4.2\na3 10.88.4.2\nb4 10.88.3.2\nlan 10.88.3.2\n",
		"same-bridge": "a3 10.88.3.3\nb4 10.88.4.2\n",
		"isolated":    "",
	} {
		n := newNode(t)
		n.must(t, "berth cni install --drop-in --dir /run/cni/bin")
		if got := n.must(t, strings.NewReplacer("DIR", "/run/cni/bin", "POLICY", policy).Replace(policies)); got != want {
			t.Errorf("with %s: %q, want %q", policy, got, want)
		}
	}
}

// TestHostLocalFollows lets the reference's host-local and the link go on with
// each other's files, in turn.
func TestHostLocalFollows(t *testing.T) {
	if _, err := os.Stat(reference + "/host-local"); err != nil {
		t.Skip("needs the package containernetworking-plugins")
	}
	n := newNode(t)
	n.must(t, "berth cni install --drop-in --dir /run/cni/bin")
	got := n.must(t, `
call() { CNI_COMMAND=$2 CNI_CONTAINERID=$3 CNI_NETNS=/none CNI_IFNAME=eth0 CNI_PATH=/none $1/host-local <<END
{"cniVersion":"0.3.1","name":"f","ipam":{"type":"host-local","dataDir":"/run/ips","subnet":"10.1.0.0/29"}}
END
}
R=`+reference+` B=/run/cni/bin
for c in "$R 1" "$B 2" "$R 3" "$B 4" "$R 5"; do set -- $c; call $1 ADD c$2 | grep -o '10.1.0.[0-9]*/29'; done
call $B ADD c6 | grep -o 'no IP addresses available in range set: .*[0-9]'; call $R ADD c6 | grep -o 'no IP addresses available in range set: .*[0-9]'
call $B ADD c1 | grep -o '10.*allowed'; call $R ADD c2 | grep -o '10.*allowed'
call $B DEL c1; call $R DEL c2; call $B DEL c2; call $B CHECK c1 >/dev/null || echo gone
call $R ADD c7 | grep -o '10.1.0.[0-9]*/29'; call $B ADD c8 | grep -o '10.1.0.[0-9]*/29'; ls /run/ips/f`)
	const want = `10.1.0.2/29
10.1.0.3/29
10.1.0.4/29
10.1.0.5/29
10.1.0.6/29
no IP addresses available in range set: 10.1.0.1-10.1.0.6
no IP addresses available in range set: 10.1.0.1-10.1.0.6
10.1.0.2 has been allocated to c1, duplicate allocation is not allowed
10.1.0.3 has been allocated to c2, duplicate allocation is not allowed
gone
10.1.0.2/29
10.1.0.3/29
10.1.0.2
10.1.0.3
10.1.0.4
10.1.0.5
10.1.0.6
last_reserved_ip.0
lock
`
	if got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
}

// TestDropInDetails is what the reference plugins have no example of.
func TestDropInDetails(t *testing.T) {
	n := newNode(t)
	says := func(script, want string) {
		t.Helper()
		if out := n.must(t, script); out != want {
			t.Errorf("%s: %q, want %q", script, out, want)
		}
	}
	const call = `call() { CNI_COMMAND=$2 CNI_CONTAINERID=c CNI_NETNS=/run/netns/a CNI_IFNAME=eth0 CNI_PATH=/none /run/cni/bin/$1; }
export NETCONFPATH=/run/net.d CNI_PATH=/run/cni/bin; `
	says("mkdir -p /run/cni/bin /run/net.d && echo theirs >/run/cni/bin/ptp; berth cni install --drop-in --dir /run/cni/bin 2>&1 | grep -c \"not Berth's\"; ls /run/cni/bin; rm /run/cni/bin/ptp", "1\nberth\nptp\n")
	n.must(t, "berth cni install --drop-in --dir /run/cni/bin && ip netns add a && ip netns add b")
	// The type tells where the name does not.
	says(call+`echo '{"cniVersion":"1.0.0","name":"n","type":"loopback"}' | call berth ADD | grep -o '"lo"'`, "\"lo\"\n")
	// What is not there is refused by its name; what says nothing, or is nobody's, is not.
	says(call+`echo '{"cniVersion":"1.0.0","name":"n","type":"bridge","vlan":7}' | call bridge ADD | grep -o 'unsupported key vlan: 7'
echo '{"cniVersion":"1.0.0","name":"n","type":"bridge","vlan":0,"macspoofchk":false,"_note":1}' | call bridge ADD | grep -c '"eth0"'
echo '{"cniVersion":"1.0.0","name":"n","type":"bridge","vlan":7}' | call bridge DEL`, "unsupported key vlan: 7\n1\n")
	// A limit needs no address, and no way of the host's to it.
	n.must(t, "set -e; "+call+`cat >/run/net.d/l.conflist <<'END'
{"cniVersion":"1.0.0","name":"l","plugins":[{"type":"bridge","bridge":"br-l"},{"type":"bandwidth","egressRate":8000000,"egressBurst":800000}]}
END
cnitool add l /run/netns/a && cnitool check l /run/netns/a && berth check && tc qdisc | grep -q 'rate 8Mbit'; cnitool del l /run/netns/a && test -z "$(berth sandbox ls -q)"; ip link del br-l && ip link del cni0`)
	// Hosts that share their files do not meet, and a pod of a drop-in is a
	// sandbox like any other.
	n.must(t, "set -e; "+call+`cat >/run/net.d/m.conflist <<'END'
{"cniVersion":"1.0.0","name":"m","plugins":[{"type":"bridge","bridge":"br-m","isGateway":true,"ipMasq":true,"ipam":{"type":"host-local","dataDir":"/run/ips","subnet":"10.7.0.0/24"}},{"type":"portmap","capabilities":{"portMappings":true}}]}
END
export CAP_ARGS='{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}'
cnitool add m /run/netns/a && berth publish "$(berth sandbox ls -q)" 8090:90 && berth check
unshare -n sh -ec 'ip link set lo up; cnitool add m /run/netns/b; cnitool check m /run/netns/b; nft list table inet berth | grep -q "tcp . 8080"; cnitool del m /run/netns/b; test -z "$(nft list tables)"'
berth check; cnitool del m /run/netns/a && test -z "$(berth sandbox ls -q)$(berth network ls -q)$(ls /run/ips/m/10.* 2>/dev/null)"; ip link del br-m && ip netns del a && ip netns del b && sysctl -qw net.ipv4.ip_forward=0 # the bridge leaves it on, as there`)
	n.clean(t)
	says("berth cni uninstall --dir /run/cni/bin; ls -A /run/cni/bin", "/run/cni/bin/berth\n")
}
