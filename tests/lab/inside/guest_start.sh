# The guest's first process after its disk is mounted. /tests is this tree, shared by the lab.
# One interface is for the lab's own use, in a namespace of its own: the guest's network is the test's alone.
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export PATH
modprobe virtio_net
ip link set lo up
ip netns add lab
for path in /sys/class/net/*; do
  [ "$(cat "$path/address")" = 02:4c:42:ff:ff:ff ] && ip link set "${path##*/}" netns lab name lab0
done
ip -n lab address add 10.0.2.15/24 dev lab0
ip -n lab link set lab0 up
nsenter --net=/run/netns/lab python3 -S -E /tests/lab/inside/guest_agent.py 7000 &
agent=$!
# This shell is the parent of every orphan, and `wait` reaps them.
while kill -0 $agent 2>/dev/null; do wait; done
echo "the lab's agent has ended"
echo o >/proc/sysrq-trigger
sleep 60
