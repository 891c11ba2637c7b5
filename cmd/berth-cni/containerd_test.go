package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// box makes an image of one static program, as an archive that other tools
// read, and puts the plugin and a configuration for a network where runtimes
// look for them, on mounts that end with the host.
const box = `set -e
mkdir -p /run/etc/upper /run/etc/work && mount -t overlay etc /etc -o lowerdir=/etc,upperdir=/run/etc/upper,workdir=/run/etc/work && mount -t tmpfs opt /opt
rm -rf /etc/cni && mkdir -p /run/tree/bin /run/tree/www && cp "$(command -v busybox)" /run/tree/bin && echo page >/run/tree/www/index.html
for name in sh sleep wget httpd ping true; do ln -s busybox /run/tree/bin/$name; done
tar -C /run/tree -cf - . | berth import -c 'ENV PATH=/bin' - box:1
berth save -o /run/box.tar box:1 && berth rmi box:1
berth cni install && berth network create --subnet 10.1.0.0/24 front && berth cni conflist --write front`

// needs skips a test that lacks a program.
func needs(t *testing.T, programs ...string) {
	t.Helper()
	for _, name := range programs {
		if _, err := exec.LookPath(name); err != nil {
			t.Skipf("no %s: scripts/setup installs it", name)
		}
	}
}

// TestContainerd has containers of containerd's on a network: they reach each
// other, and ports are published while they run, which containerd cannot.
func TestContainerd(t *testing.T) {
	needs(t, "containerd", "ctr", "runc", "busybox")
	n := newNode(t)
	n.must(t, box)
	space := "berth-" + filepath.Base(n.dir) // names containers' cgroups, which all hosts share
	env := []string{"CONTAINERD_ADDRESS=/run/ctd/sock", "CONTAINERD_NAMESPACE=" + space}
	must := func(script string) string {
		t.Helper()
		return n.must(t, "set -e\n"+script, env...)
	}
	must(`mkdir /run/ctd && cat >/run/ctd/config <<END
version = 2
root = "/run/ctd/root"
state = "/run/ctd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
address = "/run/ctd/sock"
[plugins."io.containerd.internal.v1.opt"]
path = "/run/ctd/opt"
END
containerd -c /run/ctd/config >/run/ctd/log 2>&1 & echo $! >/run/ctd/pid
until ctr version >/dev/null 2>&1; do kill -0 $(cat /run/ctd/pid) || { cat /run/ctd/log; exit 1; }; done`)
	t.Cleanup(func() {
		out, err := n.sh(`for c in $(ctr containers ls -q); do ctr tasks rm -f $c; ctr containers rm $c; done 2>&1; kill $(cat /run/ctd/pid)`, env...)
		if err != nil || t.Failed() {
			t.Logf("%v: %s%s", err, out, n.must(t, "tail -5 /run/ctd/log"))
		}
		groups, _ := filepath.Glob("/sys/fs/cgroup/*/" + space) // its pattern is right
		for _, g := range append(groups, "/sys/fs/cgroup/"+space) {
			os.Remove(g) // best effort: it is empty, or was not there
		}
	})

	must("ctr images import --base-name box /run/box.tar >/dev/null")
	image := must("ctr images ls -q | head -1 | tr -d '\n'")
	must("ctr run -d --cni " + image + " web httpd -f -p 80 -h /www && ctr run -d --cni " + image + " app sleep 1000000")
	web := space + "-web"
	if out := must("berth sandbox ls --format '{{.Name}}'"); !contains(out, web, space+"-app") {
		t.Errorf("the sandboxes: %s", out)
	}
	// They reach each other, by what runs inside.
	must(`until ctr tasks exec --exec-id get$((i = i + 1)) app wget -qO- 10.1.0.2 | grep page; do :; done
ctr tasks exec --exec-id ping web ping -c 1 -W 1 10.1.0.3`)

	// Published, and a second port, while it runs.
	n.must(t, "ip netns add lan && ip link set up1 netns lan && ip -n lan addr add 192.0.2.9/24 dev up1 && ip -n lan link set up1 up")
	must("! ip netns exec lan curl -sm 2 192.0.2.1:8888")
	must("berth publish " + web + " 8888:80 && ip netns exec lan curl -sm 5 192.0.2.1:8888 | grep page")
	must("berth publish " + web + " 9999:80 && ip netns exec lan curl -sm 5 192.0.2.1:9999 | grep page && ip netns exec lan curl -sm 5 192.0.2.1:8888 | grep page && curl -sm 5 127.0.0.1:9999 | grep page")
	must("berth unpublish " + web + " 8888 && ! ip netns exec lan curl -sm 2 192.0.2.1:8888 && berth check")

	// One that has ended is taken away, when its namespace is gone already.
	must("ctr run --rm --cni " + image + " once true && test $(berth sandbox ls -q | wc -l) = 2")
	// ctr takes away nobody that it left running: what is dead is forgotten.
	must("for c in web app; do ctr tasks rm -f $c; ctr containers rm $c; done; berth reconcile >/dev/null && test -z \"$(berth sandbox ls -q)\"")
	must("berth check && berth network rm front && test -z \"$(nft list ruleset)\" && ip netns del lan")
}

// TestPodman has containers of Podman's, which gives ports, addresses and
// aliases by capabilities, and connects and disconnects while they run.
func TestPodman(t *testing.T) {
	needs(t, "podman", "conmon", "runc", "busybox")
	n := newNode(t)
	n.must(t, box)
	n.must(t, `mkdir -p /run/pod/bin && cat >/run/pod/conf <<END
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
END
cat >/run/pod/bin/pod <<"END"
#!/bin/sh
exec timeout 60 podman --root /run/pod/root --runroot /run/pod/run --tmpdir /run/pod/tmp --runtime runc --cgroup-manager cgroupfs --events-backend file --storage-driver vfs "$@"
END
chmod +x /run/pod/bin/pod`)
	env := []string{"CONTAINERS_CONF=/run/pod/conf"}
	must := func(script string) string {
		t.Helper()
		return n.must(t, "set -e; PATH=/run/pod/bin:$PATH\n"+script, env...)
	}
	t.Cleanup(func() {
		if out, err := n.sh("/run/pod/bin/pod rm -fa -t 0", env...); err != nil {
			t.Logf("remove what is left: %v: %s", err, out)
		}
	})
	// Its default limits may be above those that the test is started with.
	const run = "pod run -d --network front --ulimit nofile=1024:1024 --ulimit nproc=1024:1024 "
	must("pod load -q -i /run/box.tar")
	must(run + "--name web -p 8888:80 box:1 httpd -f -p 80 -h /www && " + run + "--name app --ip 10.1.0.9 box:1 sleep 1000000")
	if out := must("pod network ls; pod inspect -f '{{.NetworkSettings.Networks.front.IPAddress}}' app"); !contains(out, "front", "berth", "10.1.0.9") {
		t.Errorf("what Podman knows: %s", out)
	}
	must(`until pod exec app wget -qO- 10.1.0.2 | grep page; do :; done
curl -sm 5 127.0.0.1:8888 | grep page
web=$(pod inspect -f '{{.Id}}' web)
berth publish $web 9999:80 && curl -sm 5 127.0.0.1:9999 | grep page && curl -sm 5 127.0.0.1:8888 | grep page
pod network disconnect front app && ! pod exec app wget -T 1 -qO- 10.1.0.2 && pod network connect --alias db front app && pod exec app wget -qO- 10.1.0.2 | grep page
berth network inspect front | grep -q '"db"' && berth check`)
	must("pod rm -f -t 0 web app && test -z \"$(berth sandbox ls -q)\"")
	n.clean(t)
}
